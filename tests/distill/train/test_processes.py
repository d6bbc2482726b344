"""Trainings in real processes: killed with SIGKILL, shared by two, sharded over two."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import load_file

from pocketfocus.distill.reference.phases import (
    AUTOENCODER_CROPS,
    Phase,
    save_reference,
    train_reference,
    trained_parts,
)
from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.distill.student.options import Distillation
from pocketfocus.distill.student.stage import distill_run
from pocketfocus.distill.train import loop
from pocketfocus.distill.train.checkpoint import read_counters
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.distributed import SHARDED, sharding_plugin
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json

SCRIPT = Path(__file__).with_name("processes.py")
STEPS, NEVER = 4, 99


@pytest.fixture(scope="module")
def trainings() -> dict[str, Any]:
    """What the script defines, to run in this process."""
    return runpy.run_path(str(SCRIPT))


def run(*arguments: object, launcher: Sequence[str] = ()) -> None:
    """Run the script."""
    result = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module")
def taught(
    ramps: np.ndarray,
    write_stacks: Callable[[Path, np.ndarray], Path],
    small_student: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Distillation:
    """A distillation from three stacks of a reference and three true ones."""
    folder = tmp_path_factory.mktemp("taught")
    scenes = write_stacks(folder / "scenes", ramps)
    torch.manual_seed(0)
    save_reference(build_reference(SMALLEST), folder / "reference", {})
    return Distillation(
        minutes=math.inf,
        steps=STEPS,
        reference=str(folder / "reference"),
        start=small_student,
        sources=(str(scenes),),
        crops=(Crops(1.0, 32, 64),),
        max_teacher_stacks=3,
        learning_rate=0.02,  # four steps are within the warm-up, to a twelfth of the rate
    )


@pytest.fixture(scope="module")
def shared(
    trainings: dict[str, Any], taught: Distillation, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What two CPU processes under `accelerate launch` make: `tiny`, interrupted; `distilled`;
    `sharded`, from the checkpoint of an unsharded start."""
    folder = tmp_path_factory.mktemp("shared")
    trainings["tiny"](folder / "sharded", 2, 2, 1)
    words: list[object] = ["--reference", taught.reference, "--student", taught.start, "--crop", 64]
    words += ["--stacks", *taught.sources, "--steps", STEPS, "--targets", taught.max_teacher_stacks]
    words += ["--learning-rate", taught.learning_rate]
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launcher = ["-m", "accelerate.commands.launch", *options]
    run("shared", folder, *words, launcher=launcher)
    return folder


def losses(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def assert_same(one: Path, other: Path) -> None:
    """The same losses and weights, up to the order of fp32 sums."""
    assert [step for step, _ in losses(one)] == list(range(1, STEPS + 1))
    for (_, made), (_, expected) in zip(losses(one), losses(other), strict=True):
        assert made == pytest.approx(expected, rel=1e-4)
    first, second = (load_file(folder / "checkpoint.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert torch.equal(first["random"], second["random"])
    for name, tensor in first.items():
        if name.startswith(("model.", "ema.")):  # Adam makes whole steps of rounded zeros
            assert (tensor - second[name]).abs().max() < 2 * STEPS * 1e-3, name
            assert (tensor - second[name]).abs().mean() < 2e-4, name


@pytest.fixture(scope="module")
def alone(trainings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with batches of four."""
    folder = tmp_path_factory.mktemp("alone")
    trainings["tiny"](folder, 4, 1, NEVER)
    return folder


def test_two_processes_are_one_with_twice_the_batch(
    alone: Path, shared: Path, trainings: dict[str, Any]
) -> None:
    """Two processes of two samples; one of them is interrupted, one process with two accumulated
    batches goes on: the same losses as one process with batches of four, and no row twice."""
    folder = shared / "tiny"
    assert read_counters(folder / "checkpoint.safetensors").step == 2
    assert [step for step, _ in losses(folder)] == [1, 2]
    trainings["tiny"](folder, 2, 2, NEVER)
    assert_same(folder, alone)


def test_sharded_over_two_processes_it_trains_the_same(alone: Path, shared: Path) -> None:
    """accelerate's FSDP2 on two CPU processes."""
    assert_same(shared / "sharded", alone)


def test_a_distillation_in_two_processes_is_one_with_twice_the_batch(
    shared: Path, taught: Distillation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command under `accelerate launch`, interrupted in its second step and gone on with: the
    same teacher stacks, losses, weights and scores as one process with twice the batch."""
    monkeypatch.setattr(loop, "computes_in_bf16", lambda device: False)
    distill_run(tmp_path, taught)
    pair = shared / "distilled", tmp_path
    assert_same(pair[0] / "training", pair[1] / "training")
    found, expected = (read_json(folder / "distill.json") for folder in pair)
    for name in ("before_db", "after_db"):
        assert found.pop(name) == pytest.approx(expected.pop(name), abs=2e-3)
    assert found == expected and found["targets"] + found["held_out"] == 3
    made, wanted = (sorted((f / "targets").glob("*/*.safetensors")) for f in pair)
    assert [p.relative_to(pair[0]) for p in made] == [p.relative_to(pair[1]) for p in wanted]
    for one, other in zip(map(load_file, made), map(load_file, wanted), strict=True):
        assert torch.equal(one["photo"], other["photo"])
        assert (one["stack"].int() - other["stack"].int()).abs().max() <= 1
    assert not list(pair[0].rglob(".*")), "nothing half-written is left"


def test_the_full_size_unet_is_sharded_by_blocks() -> None:
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel()  # diffusers' defaults are SVD's sizes, to a head
    plugin = sharding_plugin(unet)
    plugin.set_auto_wrap_policy(unet)
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    policy = fsdp2_prepare_auto_wrap_policy(plugin, unet)
    assert policy is not None
    units = [module for module in unet.modules() if policy(module)]
    assert {type(unit).__name__ for unit in units} == set(SHARDED)
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in units]
    whole = sum(p.numel() for p in unet.parameters())
    assert whole > 1.5e9 and max(sizes) < 61e6 and sum(sizes) > 0.85 * whole


def test_what_cannot_be_sharded_is_refused(
    tmp_path: Path, ramps: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sharding_plugin(trained_parts(build_reference(SMALLEST))).transformer_cls_names_to_wrap
    with pytest.raises(UserError, match="without --use_fsdp"):
        sharding_plugin(torch.nn.Linear(2, 2))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="without --use_fsdp"):
        phase = Phase(Schedule(), AUTOENCODER_CROPS)
        train_reference(ramps, tmp_path, phase, phase)


def test_killed_in_both_phases_and_resumed_equals_uninterrupted_bit_for_bit(
    trainings: dict[str, Any], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainings["reference"](whole, 5.0)
    run("killed", parts)
    for phase in ("autoencoder", "denoiser"):
        first, second = (load_file(f / phase / "checkpoint.safetensors") for f in (whole, parts))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert losses(whole / phase) == losses(parts / phase)
    for part in ("unet", "vae", "image_encoder"):
        first, second = (load_file(next((f / part).glob("*.safetensors"))) for f in (whole, parts))
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list(parts.rglob(".*")), "nothing half-written is left"
