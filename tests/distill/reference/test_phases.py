"""Training the reference at its smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketfocus.distill.reference.phases import (
    AUTOENCODER_CROPS,
    DENOISER_CROPS,
    Phase,
    train_reference,
)
from pocketfocus.distill.reference.presets import SMALLEST
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.sampling import Sampling
from pocketfocus.run.errors import UserError

CROPS = (Crops(0.5, 2, 16), Crops(1.0, 1, 32))
WHOLE = (Crops(1.0, 1, 64),)


def trained(stacks: np.ndarray, out: Path, steps: int) -> ReferencePipeline:
    schedule = Schedule(steps=steps, log_every=1)
    return train_reference(stacks, out, Phase(schedule, CROPS), Phase(schedule, WHOLE), SMALLEST)


def test_trains_saves_and_loads(ramps: np.ndarray, tmp_path: Path) -> None:
    made = trained(ramps, tmp_path, 3)
    loaded = load_reference(str(tmp_path))
    scale = made.vae.config.scaling_factor
    assert loaded.vae.config.scaling_factor == pytest.approx(scale)
    photo = torch.from_numpy(ramps[:1, 4].copy()).float() / 127.5 - 1
    assert loaded(photo, 4, Sampling(2)).shape == (9, 3, 64, 64)
    for phase in ("autoencoder", "denoiser"):
        rows = (tmp_path / phase / "train.jsonl").read_text().splitlines()
        assert [json.loads(r)["step"] for r in rows] == [1, 2, 3]


def test_a_second_run_resumes_the_denoiser(ramps: np.ndarray, tmp_path: Path) -> None:
    for steps in (2, 4):
        trained(ramps, tmp_path, steps)
    rows = (tmp_path / "denoiser" / "train.jsonl").read_text().splitlines()
    assert [json.loads(r)["step"] for r in rows] == [1, 2, 3, 4]


def test_the_autoencoder_stays_once_a_denoiser_has_begun(ramps: np.ndarray, tmp_path: Path) -> None:
    """More steps would move the latents that the denoiser has learned."""
    first, longer = (trained(ramps, tmp_path, steps).vae for steps in (2, 4))
    kept = longer.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in first.state_dict().items())
    assert len((tmp_path / "autoencoder" / "train.jsonl").read_text().splitlines()) == 2
    assert len(list((tmp_path / "denoiser").glob("latents*"))) == 1
    (tmp_path / "autoencoder" / "checkpoint.safetensors").rename(tmp_path / "autoencoder" / "kept")
    with pytest.raises(UserError, match=r"checkpoint\.safetensors is gone: delete that folder"):
        trained(ramps, tmp_path, 4)
    (tmp_path / "autoencoder" / "kept").rename(tmp_path / "autoencoder" / "checkpoint.safetensors")
    (tmp_path / "denoiser" / "checkpoint.safetensors").unlink()
    trained(ramps, tmp_path, 6)
    assert len((tmp_path / "autoencoder" / "train.jsonl").read_text().splitlines()) == 6


def test_small_stacks_are_refused(ramps: np.ndarray, tmp_path: Path) -> None:
    schedule = Schedule(steps=1)
    phases = (Phase(schedule, AUTOENCODER_CROPS), Phase(schedule, DENOISER_CROPS))
    with pytest.raises(UserError, match="crops need 192"):
        train_reference(ramps, tmp_path, *phases)
