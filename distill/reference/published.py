"""Train a denoiser step by step as Learn2Refocus's published code does: whole frames, posteriors.

Beside what `denoiser` does alike (EDM's noise levels, loss and dropout), latents are samples of the
autoencoder's posterior, time ids are (7, 0, noise level of the condition), and CLIP sees pixels of
[0, 1]. Legend: N stacks, T = 9 frames, C latent channels, H, W pixels, h, w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pocketfocus.distill.reference.denoiser import CONTENT, encoded_once, refocused_picture
from pocketfocus.distill.reference.phases import Phase
from pocketfocus.distill.train import edm
from pocketfocus.distill.train.crops import Pixels
from pocketfocus.distill.train.edm import Denoiser
from pocketfocus.distill.train.loop import Task
from pocketfocus.models.clip import training_pixels
from pocketfocus.models.reference import MOTION_BUCKET, ReferencePipeline
from pocketfocus.photos.images import from_uint8
from pocketfocus.run.constants import FRAMES

FPS = 7.0  # of its training; its inference, as diffusers', says one less


@dataclass(frozen=True)
class Posteriors:
    """True focal stacks, uint8 [N,T,3,H,W], and the posterior of their unscaled latents: mean and
    deviation, float [N,2,T,C,h,w]."""

    pixels: Pixels
    moments: np.ndarray

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a stack, whole [1,T,3,H,W] in [-1,1], and a sample [1,T,C,h,w] of its latents."""
        n = int(torch.randint(0, len(self.pixels), (), generator=generator))
        frames = from_uint8(np.array(self.pixels[n]), planar=True)
        mean, deviation = torch.from_numpy(np.array(self.moments[n])).float()
        sample = mean + deviation * torch.randn(mean.shape, generator=generator)
        return frames[None], sample[None]


class PublishedBatch(NamedTuple):
    """What `published_losses` takes."""

    photos: Tensor  # [B,3,H,W] in [-1,1]
    grainy: Tensor  # the same with the noise of the condition
    level: Tensor  # [B], of that noise
    jitter: Tensor  # of unit variance, [B,C,h,w]: where in its posterior the condition is
    positions: Tensor  # [B], of the photos
    keep_embedding: Tensor  # [B], 0.0 where the embedding is dropped
    keep_latent: Tensor  # [B], 0.0 where the condition is dropped
    clean: Tensor  # scaled latents [B,T,C,h,w]
    sigma: Tensor  # [B], noise levels
    noise: Tensor  # of unit variance, as `clean`


def published_sample(
    pipeline: ReferencePipeline, stacks: Posteriors, _: int, generator: torch.Generator
) -> PublishedBatch:
    """Draw a random stack, whole, and all its noise, on the CPU.

    Stacks are drawn one by one, where the published code goes through a shuffled list.
    """
    frames, latents = stacks.drawn(generator)
    position = torch.randint(0, FRAMES, (1,), generator=generator)
    photo = frames[:, int(position)]
    spoiled = edm.LEARN2REFOCUS
    level = edm.sample_sigma(1, spoiled.mean, spoiled.std, generator)
    grain = torch.randn(photo.shape, generator=generator)
    clean = latents * pipeline.vae.config.scaling_factor
    return PublishedBatch(
        photo,
        photo + edm.append_dims(level, photo.ndim) * grain,
        level,
        torch.randn(latents[:, 0].shape, generator=generator),
        position,
        *edm.condition_masks(1, generator, spoiled.dropout),
        clean,
        edm.sample_sigma(1, edm.P_MEAN, edm.P_STD, generator),
        torch.randn(clean.shape, generator=generator),
    )


def published_losses(pipeline: ReferencePipeline, batch: PublishedBatch) -> dict[str, Tensor]:
    """Compute the EDM loss; returns scalars: loss, and mse of the latents."""
    clean, sigma = batch.clean, batch.sigma
    noisy = clean + edm.append_dims(sigma, clean.ndim) * batch.noise
    with torch.no_grad():
        posterior = pipeline.vae.encode(batch.grainy).latent_dist
        latent = posterior.mean + posterior.std * batch.jitter
        embedding = pipeline.embed(batch.photos, training_pixels)
    kept = edm.append_dims(batch.keep_latent, clean.ndim)
    condition = pipeline.condition(latent, batch.positions) * kept
    embedding = embedding * edm.append_dims(batch.keep_embedding, embedding.ndim)
    denoiser = Denoiser(pipeline.denoise)
    ids, basis = training_time_ids(batch.level), pipeline.basis(batch.photos)
    made = denoiser(noisy, sigma, condition, embedding, ids, basis)
    loss = edm.weighted_loss(made, clean, sigma)
    return {"loss": loss, "mse": (made - clean).detach().pow(2).mean()}


def training_time_ids(level: Tensor) -> Tensor:
    """Return the micro-conditioning [B,3] of training: frames a second, motion bucket, and the
    levels [B] of the condition's noise, which the published inference says is 0."""
    fps, motion = level.new_full(level.shape, FPS), level.new_full(level.shape, MOTION_BUCKET)
    return torch.stack([fps, motion, level], dim=1)


@torch.no_grad()
def encode_posterior(pipeline: ReferencePipeline, stack: Pixels) -> np.ndarray:
    """Encode every frame, uint8 [T,3,H,W] -> mean and deviation, float16 [2,T,C,h,w]."""
    frames = from_uint8(stack, planar=True).to(pipeline.vae.device)
    found = [pipeline.vae.encode(frame[None]).latent_dist for frame in frames]
    moments = torch.stack([torch.cat([each.mean, each.std]) for each in found], dim=1)
    return moments.half().cpu().numpy()


def published_task(pipeline: ReferencePipeline, stacks: Pixels, folder: Path, phase: Phase) -> Task:
    """Make the task of the published training; posteriors are kept in `folder`."""
    content = phase.config.get(CONTENT)
    moments = encoded_once(folder / "posteriors.npy", pipeline, stacks, encode_posterior, content)
    posteriors = Posteriors(stacks, moments)
    picture = partial(refocused_picture, pipeline, stacks, phase.crops[-1].size)
    return Task(
        partial(published_sample, pipeline, posteriors),
        lambda *batch: published_losses(pipeline, PublishedBatch(*batch)),
        phase.crops,
        lambda: {"input, truth, estimate": picture()},
    )
