"""The EDM formulation of Stable Video Diffusion's training (Karras et al., arXiv 2206.00364).

Legend: B batch, T frames, C latent channels, h, w latent size; sigma [B] is the noise level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

P_MEAN, P_STD = 0.7, 1.6  # ln sigma of the latent noise, Learn2Refocus


@dataclass(frozen=True)
class Conditioning:
    """How the input is spoiled in training: ln sigma of the noise on the photo is N(mean, std²);
    `dropout` is the share of each of no embedding, neither, no latent."""

    mean: float
    std: float
    dropout: float


LEARN2REFOCUS = Conditioning(-3.0, 0.5, 0.1)
# The small reference adds differences to the photo itself, so the finest detail matters; dropout as
# in InstructPix2Pix (arXiv 2211.09800), section 3.2.
RELATIVE = Conditioning(-4.0, 0.5, 0.05)


def _like(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


# ln sigma ~ N(P_mean, P_std^2), table 1
def sample_sigma(batch: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """[B] noise levels, log-normal."""
    return (torch.randn(batch, generator=generator) * std + mean).exp()


# c_noise = ln(sigma) / 4, table 1
def timestep(sigma: Tensor) -> Tensor:
    """[B] continuous timesteps of `EulerDiscreteScheduler(timestep_type="continuous")`."""
    return 0.25 * sigma.log()


# c_in = 1 / sqrt(sigma^2 + 1), table 1 with sigma_data = 1
def scale_input(noisy: Tensor, sigma: Tensor) -> Tensor:
    """Scale noisy latents [B,T,C,h,w] to unit variance."""
    return noisy / (_like(sigma, noisy) ** 2 + 1).sqrt()


# D = c_skip x + c_out F, with c_skip = 1 / (sigma^2 + 1), c_out = -sigma / sqrt(sigma^2 + 1)
def denoised(velocity: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Clean latents [B,T,C,h,w] from the v-prediction of the same shape."""
    s = _like(sigma, noisy)
    return velocity * (-s / (s**2 + 1).sqrt()) + noisy / (s**2 + 1)


# lambda = (1 + sigma^2) / sigma^2
def weighted_loss(estimate: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Mean weighted squared error, a scalar."""
    s = _like(sigma, clean)
    return ((1 + s**2) / s**2 * (estimate - clean) ** 2).mean()


# InstructPix2Pix: r < 2p drops the embedding, p <= r < 3p drops the latent
def condition_masks(
    batch: int, generator: torch.Generator, dropout: float
) -> tuple[Tensor, Tensor]:
    """([B] keep embedding, [B] keep latent), 0.0 or 1.0."""
    r = torch.rand(batch, generator=generator)
    keep_embedding = (r >= 2 * dropout).float()
    keep_latent = ((r < dropout) | (r >= 3 * dropout)).float()
    return keep_embedding, keep_latent
