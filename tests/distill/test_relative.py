"""Denoising the difference to the photo's latent: an untrained denoiser then copies the photo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pocketfocus.distill import edm
from pocketfocus.distill.autoencoder import initialise
from pocketfocus.distill.denoiser import (
    denoiser_losses,
    draw_sample,
    encode_stacks,
    initialise_denoiser,
    relative_scaling_factor,
)
from pocketfocus.distill.presets import SMALLEST, build_reference
from pocketfocus.optics import FRAMES
from pocketfocus.reference import ReferencePipeline, Sampling, load_reference


def untrained(relative: bool) -> ReferencePipeline:
    torch.manual_seed(0)
    pipeline = build_reference(replace(SMALLEST, relative_latents=relative))
    initialise(pipeline.vae, torch.rand(8, 3, 32, 32) * 2 - 1)
    initialise_denoiser(pipeline.unet)
    for module in (pipeline.vae, pipeline.unet, pipeline.image_encoder):
        module.eval().requires_grad_(False)
    return pipeline


@pytest.mark.parametrize("position", [0, 5])
def test_untrained_it_returns_the_photo_at_all_nine_positions(position: int) -> None:
    pipeline, photo = untrained(relative=True), torch.rand(1, 3, 64, 64) * 2 - 1
    stack = pipeline(photo, position, Sampling(1))
    copied = photo.expand(FRAMES, -1, -1, -1)
    assert torch.allclose(stack, copied, atol=0.02)
    absolute = untrained(relative=False)(photo, position, Sampling(1))
    assert not torch.allclose(absolute, copied, atol=0.1)


def test_a_stack_like_its_photo_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal frames the difference is zero, so an estimate of zero has no error."""
    monkeypatch.setattr(edm, "P_MEAN", 12.0)  # so much noise that the estimate is the network's
    pipeline = untrained(relative=True)
    stacks = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 32, 32), np.uint8)
    latents = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 4)).astype(np.float16)
    stacks, latents = (np.repeat(pixels, FRAMES, axis=1) for pixels in (stacks, latents))
    sample = draw_sample(pipeline, stacks, latents, 32, torch.Generator().manual_seed(0))
    losses = denoiser_losses(pipeline, *sample)
    assert losses["mse"] < 1e-3


def test_the_scaling_factor_gives_differences_unit_deviation() -> None:
    latents = np.random.default_rng(0).normal(0, 0.1, (20, FRAMES, 4, 8, 8)).astype(np.float16)
    scale = relative_scaling_factor(latents, torch.Generator().manual_seed(0))
    assert scale == pytest.approx(1 / (0.1 * np.sqrt(2 * 8 / 9)), rel=0.05)


def test_latents_are_kept_unscaled() -> None:
    pipeline = untrained(relative=True)
    pipeline.vae.register_to_config(scaling_factor=7.0)
    stacks = np.random.default_rng(0).integers(0, 256, (1, FRAMES, 3, 64, 64), dtype=np.uint8)
    latents = encode_stacks(pipeline, stacks)
    frames = torch.from_numpy(stacks[0]).float() / 127.5 - 1
    assert np.allclose(latents[0], pipeline.encode(frames).numpy(), atol=0.1)


def test_the_choice_is_kept_with_the_weights(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from pocketfocus.distill.reference import save_reference

    save_reference(untrained(relative=True), tmp_path, {})
    assert load_reference(str(tmp_path)).relative
