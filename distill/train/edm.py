"""The EDM formulation of Stable Video Diffusion's training (Karras et al., arXiv 2206.00364).

Legend: B batch, T frames, C latent channels, h, w latent size; sigma [B] is the noise level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

P_MEAN, P_STD = 0.7, 1.6  # ln sigma of the latent noise, Learn2Refocus


@dataclass(frozen=True)
class Denoiser:
    """Karras preconditioning around any network of v-prediction, with sigma_data = 1.

    Attributes:
        network: `network(scaled, timestep, *given)` predicts the velocity [B,T,C,h,w] from latents
            of unit variance and the continuous timesteps [B] of `EulerDiscreteScheduler`.
    """

    network: Callable[..., Tensor]

    # D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), equation 7
    def __call__(self, noisy: Tensor, sigma: Tensor, *given: Tensor) -> Tensor:
        """Estimate clean latents [B,T,C,h,w] from noisy ones at levels [B]."""
        s = append_dims(sigma, noisy.ndim)
        scaled = noisy / (s**2 + 1).sqrt()  # c_in = 1 / sqrt(sigma^2 + 1)
        timestep = 0.25 * sigma.log()  # c_noise = ln(sigma) / 4
        velocity = self.network(scaled, timestep, *given).float()
        # c_out = -sigma / sqrt(sigma^2 + 1), c_skip = 1 / (sigma^2 + 1)
        return velocity * (-s / (s**2 + 1).sqrt()) + noisy / (s**2 + 1)


def append_dims(sigma: Tensor, ndim: int) -> Tensor:
    """Reshape noise levels [B] to [B,1,...], as many dimensions as the tensors they apply to."""
    return sigma.reshape(-1, *[1] * (ndim - 1))


# lambda(sigma) = 1 / c_out^2 = (1 + sigma^2) / sigma^2
def weighted_loss(estimate: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Return the mean squared error of estimates [B,T,C,h,w], weighted by noise level."""
    s = append_dims(sigma, clean.ndim)
    return ((1 + s**2) / s**2 * (estimate - clean) ** 2).mean()


# ln sigma ~ N(P_mean, P_std^2), table 1
def sample_sigma(batch: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Draw log-normal noise levels [B]."""
    return (torch.randn(batch, generator=generator) * std + mean).exp()


@dataclass(frozen=True)
class Conditioning:
    """How training spoils what the network is given."""

    mean: float  # of ln sigma of the noise on the photo
    std: float
    dropout: float  # the share of each of no embedding, neither, no latent


LEARN2REFOCUS = Conditioning(-3.0, 0.5, 0.1)
# The small reference adds differences to the photo itself, so the finest detail matters; dropout as
# in InstructPix2Pix (arXiv 2211.09800), section 3.2.
RELATIVE = Conditioning(-4.0, 0.5, 0.05)


# InstructPix2Pix: r < 2p drops the embedding, p <= r < 3p drops the latent
def condition_masks(
    batch: int, generator: torch.Generator, dropout: float
) -> tuple[Tensor, Tensor]:
    """Draw ([B] keep embedding, [B] keep latent), 0.0 or 1.0."""
    r = torch.rand(batch, generator=generator)
    keep_embedding = (r >= 2 * dropout).float()
    keep_latent = ((r < dropout) | (r >= 3 * dropout)).float()
    return keep_embedding, keep_latent
