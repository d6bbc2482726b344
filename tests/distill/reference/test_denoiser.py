"""The denoiser's start, samples and losses; of the difference to the photo's latent above all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.data.optics import disc_kernel, linear_to_srgb, srgb_to_linear
from pocketfocus.distill.reference.autoencoder import initialise
from pocketfocus.distill.reference.denoiser import (
    BLANK_SHARE,
    FLOOR,
    LATENT_GAIN,
    PLANE_GAIN,
    EncodedStacks,
    denoiser_losses,
    draw_sample,
    encode_stack,
    initialise_denoiser,
    log_error,
    pixel_energy,
)
from pocketfocus.distill.reference.phases import save_reference
from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.distill.train import edm
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.sampling import Sampling
from pocketfocus.run.constants import FRAMES


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
    generator = torch.Generator().manual_seed(0)
    sample = draw_sample(pipeline, EncodedStacks(stacks, latents), 32, generator)
    losses = denoiser_losses(pipeline, sample)
    assert losses["mse"] < 1e-3


def test_the_loss_is_the_mean_psnr_of_the_frames_in_pixels() -> None:
    """An error in latents, decoded by the linear part, has the PSNR that the loss says."""
    pipeline = untrained(relative=True)
    pipeline.vae.register_to_config(scaling_factor=3.0)
    error = torch.randn(2, FRAMES, 4, 2, 2) * torch.linspace(0.1, 1, FRAMES)[:, None, None, None]
    kernels = pipeline.vae.decoder_shortcut.weight
    decoded = F.conv_transpose2d(error.flatten(0, 1) / 3, kernels, stride=kernels.shape[-1])
    squared = decoded.square().mean((1, 2, 3))
    loss = log_error(error, pixel_energy(pipeline))
    torch.testing.assert_close(loss, (squared + FLOOR).log().mean(), rtol=1e-4, atol=1e-4)


def test_the_gain_is_over_copying() -> None:
    """Untrained, the estimate from nothing is no difference: the gain is zero, at any loss."""
    pipeline = untrained(relative=True)
    stacks = np.random.default_rng(0).integers(0, 256, (1, FRAMES, 3, 32, 32), np.uint8)
    latents = np.random.default_rng(0).normal(size=(1, FRAMES, 4, 4, 4)).astype(np.float16)
    generator, sigma = torch.Generator().manual_seed(0), torch.full((1,), 700.0)
    batch = draw_sample(pipeline, EncodedStacks(stacks, latents), 32, generator)
    blank = batch._replace(sigma=sigma, noise=-batch.clean / sigma)
    losses = denoiser_losses(pipeline, blank)
    assert losses["gain_db"] == pytest.approx(0, abs=0.01)


def disc_change(pipeline: ReferencePipeline, photo: Tensor, radius: float) -> Tensor:
    """What a disc changes of a photo [1,3,H,W], kept by the linear part of the autoencoder."""
    linear = srgb_to_linear((photo + 1) / 2)
    kernel = disc_kernel(radius).expand(3, 1, -1, -1)
    half = kernel.shape[-1] // 2
    padded = F.pad(linear, (half,) * 4, mode="replicate")
    change = linear_to_srgb(F.conv2d(padded, kernel, groups=3)) * 2 - 1 - photo
    weight = pipeline.vae.encoder_shortcut.weight
    return F.conv2d(change, weight, stride=weight.shape[-1])


def test_the_basis_is_what_discs_change_of_each_quarter() -> None:
    pipeline, photo = untrained(relative=True), torch.rand(1, 3, 64, 64) * 2 - 1
    pipeline.vae.register_to_config(scaling_factor=3.0)
    basis = pipeline.basis(photo)
    radii = pipeline.vae.config.defocus_radii
    assert basis.shape == (1, 4 * len(radii), 4, 8, 8)
    for n, radius in enumerate(radii):
        whole = basis[:, 4 * n : 4 * n + 4].sum(1)
        wanted = 3 * disc_change(pipeline, photo, radius)
        torch.testing.assert_close(whole, wanted, rtol=1e-3, atol=1e-4)
    flat = photo.clone()
    flat[:, :, :, :36] = 0.1  # no detail in the left half, the disc's reach included
    flat[:, :, :, 36:] = 0.1
    flat[:, :, 3, 5] = 0.9  # a point in the upper right quarter of the first patch
    first = pipeline.basis(flat)[0, :4, :, 0, 0].abs().amax(1)
    assert first[1] > 0
    assert first.argmax() == 1


def test_a_weight_of_one_blurs_the_photo_by_its_disc() -> None:
    """The UNet's weights come out as optics, in sign and size, at every position."""
    pipeline, photo = untrained(relative=True), torch.rand(1, 3, 64, 64) - 0.5
    latents, radius = pipeline.vae.config.latent_channels, 2
    channels = pipeline.unet.config.out_channels

    class Blurs(torch.nn.Module):
        dtype = torch.float32

        def forward(self, sample: Tensor, *_: object, **__: object) -> tuple[Tensor]:
            out = sample.new_zeros(1, FRAMES, channels, 8, 8)
            out[:, :, latents + 4 * radius : latents + 4 * radius + 4] = -1  # estimate = -velocity
            return (out,)

    pipeline.unet = Blurs()
    stack = pipeline(photo, 3)
    change = disc_change(pipeline, photo, pipeline.vae.config.defocus_radii[radius])
    weight = pipeline.vae.decoder_shortcut.weight
    wanted = photo + F.conv_transpose2d(change, weight, stride=weight.shape[-1])
    assert (wanted - photo).abs().max() > 0.05
    torch.testing.assert_close(stack, wanted.expand(FRAMES, -1, -1, -1), atol=5e-3, rtol=0)


def test_the_scaling_factor_gives_differences_unit_deviation() -> None:
    latents = np.random.default_rng(0).normal(0, 0.1, (20, FRAMES, 4, 8, 8)).astype(np.float16)
    stacks = EncodedStacks(np.zeros((20, FRAMES, 3, 64, 64), np.uint8), latents)
    scale = stacks.relative_scaling_factor(torch.Generator().manual_seed(0))
    assert scale == pytest.approx(1 / (0.1 * np.sqrt(2 * 8 / 9)), rel=0.05)


def test_latents_are_kept_unscaled() -> None:
    pipeline = untrained(relative=True)
    pipeline.vae.register_to_config(scaling_factor=7.0)
    stacks = np.random.default_rng(0).integers(0, 256, (1, FRAMES, 3, 64, 64), dtype=np.uint8)
    latents = encode_stack(pipeline, stacks[0])
    frames = torch.from_numpy(stacks[0]).float() / 127.5 - 1
    assert np.allclose(latents, pipeline.encode(frames).numpy(), atol=0.1)


def test_the_choice_is_kept_with_the_weights(tmp_path: Path) -> None:
    save_reference(untrained(relative=True), tmp_path, {})
    assert load_reference(str(tmp_path)).relative


def test_an_untrained_denoiser_predicts_zero_velocity() -> None:
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


def test_blank_samples_hold_no_noise_and_the_others_do(ramps: np.ndarray) -> None:
    torch.manual_seed(0)
    pipeline, generator = build_reference(SMALLEST), torch.Generator().manual_seed(0)
    latents = np.random.default_rng(0).normal(size=(3, 9, 4, 8, 8)).astype(np.float32)
    stacks, blank = EncodedStacks(ramps, latents), []
    for _ in range(200):
        drawn = draw_sample(pipeline, stacks, 32, generator)
        start = drawn.clean + drawn.sigma.reshape(-1, 1, 1, 1, 1) * drawn.noise
        blank.append(float(start.abs().max()) < 1e-3)
        assert blank[-1] == (float(drawn.sigma) == 700.0)
    assert sum(blank) / len(blank) == pytest.approx(BLANK_SHARE, abs=0.1)


def test_crops_of_frames_and_latents_match(ramps: np.ndarray) -> None:
    """Latents that are the frames' own 8x8 means must crop to the crops' means."""
    means = ramps.reshape(3, 9, 3, 8, 8, 8, 8).mean((4, 6)).astype(np.float16)
    stacks = EncodedStacks(ramps, means)
    frames, latents = stacks.crop(2, 32, torch.Generator().manual_seed(1))
    pooled = torch.nn.functional.avg_pool2d(frames.flatten(0, 1), 8).reshape(latents.shape)
    torch.testing.assert_close((pooled + 1) * 127.5, latents, rtol=1e-2, atol=0.2)
