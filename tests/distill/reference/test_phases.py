"""Training the reference at its smallest size, and the autoencoder's start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from pocketfocus.distill.reference.autoencoder import initialise, random_crops, scaling_factor
from pocketfocus.distill.reference.phases import train_reference
from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.denoiser import (
    BLANK_SHARE,
    LATENT_GAIN,
    PLANE_GAIN,
    crop_batch,
    draw_sample,
    initialise_denoiser,
)
from pocketfocus.distill.train.loop import Schedule
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import Sampling
from pocketfocus.run.errors import UserError

CROPS = (Crops(0.5, 2, 16), Crops(1.0, 1, 32))
WHOLE = (Crops(1.0, 1, 64),)


@pytest.fixture(scope="module")
def stacks() -> np.ndarray:
    """Smooth colour ramps that differ by stack and frame: uint8 [3, 9, 3, 64, 64]."""
    y, x = np.mgrid[0:64, 0:64] / 64
    phase = np.arange(81).reshape(3, 9, 3, 1, 1) / 20
    return ((np.sin(3 * (x + y) + phase) + 1) * 127).astype(np.uint8)


def test_trains_saves_and_loads(stacks: np.ndarray, tmp_path: Path) -> None:
    schedule = Schedule(steps=3, log_every=1)
    made = train_reference(stacks, tmp_path, schedule, schedule, SMALLEST, CROPS, WHOLE)
    loaded = load_reference(str(tmp_path))
    scale = made.vae.config.scaling_factor
    assert loaded.vae.config.scaling_factor == pytest.approx(scale)
    photo = torch.from_numpy(stacks[:1, 4].copy()).float() / 127.5 - 1
    assert loaded(photo, 4, Sampling(2)).shape == (9, 3, 64, 64)
    for phase in ("autoencoder", "denoiser"):
        rows = (tmp_path / phase / "train.jsonl").read_text().splitlines()
        assert [json.loads(r)["step"] for r in rows] == [1, 2, 3]


def test_a_second_run_resumes_both_phases(stacks: np.ndarray, tmp_path: Path) -> None:
    for steps in (2, 4):
        schedule = Schedule(steps=steps, log_every=1)
        train_reference(stacks, tmp_path, schedule, schedule, SMALLEST, CROPS, WHOLE)
    rows = (tmp_path / "denoiser" / "train.jsonl").read_text().splitlines()
    assert [json.loads(r)["step"] for r in rows] == [1, 2, 3, 4]


def test_small_stacks_are_refused(stacks: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crops need 192"):
        train_reference(stacks, tmp_path, Schedule(steps=1), Schedule(steps=1))


def test_initialised_autoencoder_is_principal_component_analysis(stacks: np.ndarray) -> None:
    """Before training it reconstructs as scikit-learn's projection of the same patches does."""
    torch.manual_seed(0)
    vae = build_reference(SMALLEST).vae.eval()
    frames = torch.from_numpy(stacks[:, ::4].copy()).flatten(0, 1).float() / 127.5 - 1
    initialise(vae, frames)
    with torch.no_grad():
        made = vae.decode(vae.encode(frames).latent_dist.mode(), num_frames=len(frames)).sample
    colour = frames.mean(dim=(0, 2, 3), keepdim=True)
    patches = pixel_unshuffle(frames - colour, 8).permute(0, 2, 3, 1).reshape(-1, 192).numpy()
    model = TruncatedSVD(4, algorithm="arpack").fit(patches)
    expected = model.inverse_transform(model.transform(patches)).reshape(len(frames), 8, 8, 192)
    image = pixel_shuffle(torch.from_numpy(expected).permute(0, 3, 1, 2), 8) + colour
    torch.testing.assert_close(made, image.float(), atol=1e-3, rtol=1e-3)


def test_an_untrained_denoiser_predicts_zero_velocity(stacks: np.ndarray) -> None:
    torch.manual_seed(0)
    pipeline = build_reference(SMALLEST)
    initialise_denoiser(pipeline.unet)
    config = pipeline.unet.config
    latents = torch.randn(1, 9, config.in_channels, 8, 8)
    ids, token = torch.zeros(1, 3), torch.randn(1, 1, 32)
    with torch.no_grad():
        velocity = pipeline.unet(latents, 0.1, token, ids, return_dict=False)[0]
    assert velocity.shape == (1, 9, config.out_channels, 8, 8)
    assert float(velocity.std()) < 1e-6


def test_the_condition_starts_equally_loud_in_every_channel() -> None:
    torch.manual_seed(0)
    pipeline, deviation = build_reference(SMALLEST), torch.tensor([4.0, 1.0, 0.5, 0.1])
    before = pipeline.unet.conv_in.weight.detach().clone()
    initialise_denoiser(pipeline.unet, deviation)
    gain = (pipeline.unet.conv_in.weight.detach() / before).mean((0, 2, 3))
    torch.testing.assert_close(gain[:4], torch.ones(4))
    torch.testing.assert_close(gain[4:8] * deviation, torch.full((4,), LATENT_GAIN))
    torch.testing.assert_close(gain[8:], torch.full((2,), PLANE_GAIN))


def test_blank_samples_hold_no_noise_and_the_others_do(stacks: np.ndarray) -> None:
    torch.manual_seed(0)
    pipeline, generator = build_reference(SMALLEST), torch.Generator().manual_seed(0)
    latents = np.random.default_rng(0).normal(size=(3, 9, 4, 8, 8)).astype(np.float32)
    blank = []
    for _ in range(200):
        *_, clean, sigma, noise = draw_sample(pipeline, stacks, latents, 32, generator)
        start = clean + sigma.reshape(-1, 1, 1, 1, 1) * noise
        blank.append(float(start.abs().max()) < 1e-3)
        assert blank[-1] == (float(sigma) == 700.0)
    assert sum(blank) / len(blank) == pytest.approx(BLANK_SHARE, abs=0.1)


def test_scaling_factor_gives_unit_latents(stacks: np.ndarray) -> None:
    torch.manual_seed(0)
    vae = build_reference(SMALLEST).vae.eval()
    frames = torch.from_numpy(stacks[:, 0].copy()).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(frames).latent_dist.mode() * scaling_factor(vae, frames)
    assert latents.std().item() == pytest.approx(1.0, abs=1e-3)


def test_crops_of_frames_and_latents_match(stacks: np.ndarray) -> None:
    """Latents that are the frames' own 8x8 means must crop to the crops' means."""
    means = stacks.reshape(3, 9, 3, 8, 8, 8, 8).mean((4, 6)).astype(np.float16)
    frames, latents = crop_batch(stacks, means, 2, 32, torch.Generator().manual_seed(1))
    pooled = torch.nn.functional.avg_pool2d(frames.flatten(0, 1), 8).reshape(latents.shape)
    torch.testing.assert_close((pooled + 1) * 127.5, latents, rtol=1e-2, atol=0.2)


def test_random_crops_are_seeded(stacks: np.ndarray) -> None:
    one, two = (random_crops(stacks, 3, 32, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (3, 9, 3, 32, 32)
