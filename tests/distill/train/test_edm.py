"""The training formulation against diffusers' scheduler and Karras et al.'s table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pocketfocus.distill.reference.presets import svd_scheduler
from pocketfocus.distill.train import edm
from pocketfocus.distill.train.edm import Denoiser


@pytest.mark.parametrize("index", [0, 7, 20])
def test_denoised_is_what_the_scheduler_steps_with(index: int) -> None:
    scheduler = svd_scheduler()
    scheduler.set_timesteps(25)
    t, sigma = scheduler.timesteps[index], scheduler.sigmas[index]
    generator = torch.Generator().manual_seed(index)
    noisy = torch.randn(1, 9, 4, 8, 8, generator=generator) * sigma
    velocity = torch.randn(1, 9, 4, 8, 8, generator=generator)
    seen: list[Tensor] = []

    def network(*inputs: Tensor) -> Tensor:
        seen.extend(inputs)
        return velocity

    condition = torch.zeros(1)
    made = Denoiser(network)(noisy, sigma[None], condition)
    torch.testing.assert_close(seen[0], scheduler.scale_model_input(noisy, t))
    torch.testing.assert_close(seen[1][0], t, rtol=1e-3, atol=1e-4)
    assert seen[2] is condition and len(seen) == 3
    expected = scheduler.step(velocity, t, noisy).pred_original_sample
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_the_weight_makes_the_target_a_unit_velocity() -> None:
    """(1 + s^2)/s^2 |D - x|^2 = |F - v|^2 with v the exact velocity, for any sigma."""
    generator = torch.Generator().manual_seed(0)
    clean, noise, guess = torch.randn(3, 4, 9, 2, 4, 4, generator=generator)
    sigma = torch.tensor([0.01, 0.5, 3.0, 300.0])
    s = sigma.reshape(-1, 1, 1, 1, 1)
    noisy = clean + s * noise
    exact = (noisy / (s**2 + 1) - clean) * (s**2 + 1).sqrt() / s
    torch.testing.assert_close(
        edm.weighted_loss(Denoiser(lambda *_: guess)(noisy, sigma), clean, sigma),
        ((guess - exact) ** 2).mean(),
        rtol=1e-3,
        atol=1e-3,
    )


def test_estimates_without_noise_are_what_was_given() -> None:
    noisy = torch.randn(1, 9, 4, 8, 8)
    made = Denoiser(lambda *_: torch.randn_like(noisy))(noisy, torch.tensor([1e-6]))
    torch.testing.assert_close(made, noisy, atol=1e-5, rtol=0)


def test_sigma_is_log_normal() -> None:
    drawn = edm.sample_sigma(200_000, edm.P_MEAN, edm.P_STD, torch.Generator().manual_seed(0)).log()
    assert drawn.mean().item() == pytest.approx(0.7, abs=0.02)
    assert drawn.std().item() == pytest.approx(1.6, abs=0.02)


@pytest.mark.parametrize("dropout", [edm.LEARN2REFOCUS.dropout, edm.RELATIVE.dropout])
def test_dropout_shares(dropout: float) -> None:
    embedding, latent = edm.condition_masks(200_000, torch.Generator().manual_seed(0), dropout)
    shares = [
        ((embedding == e) & (latent == x)).float().mean().item()
        for e, x in [(0, 1), (0, 0), (1, 0), (1, 1)]
    ]
    assert shares == pytest.approx([dropout] * 3 + [1 - 3 * dropout], abs=0.01)
