"""The reference model: Learn2Refocus's pipeline, photo and focal position to focal stack.

Tedla et al., "Learning to Refocus with Video Diffusion Models" (SIGGRAPH Asia 2025): a fine-tuned
Stable Video Diffusion (arXiv 2311.15127) with position-dependent conditioning, sampled by Euler
steps of the EDM formulation (Karras et al., arXiv 2206.00364).

Legend: B batch, T = 9 frames, C latent channels, H, W photo size, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from pocketfocus.models.autoencoder import defocus_basis, latent_factor
from pocketfocus.models.clip import own_pixels, published_pixels
from pocketfocus.models.model import check_input
from pocketfocus.models.sampling import Sampling, own_sampling
from pocketfocus.run.constants import FRAMES, MULTIPLE, Size
from pocketfocus.run.progress import track

FPS_ID, MOTION_BUCKET, NOISE_AUGMENTATION = 6.0, 0.0, 0.0  # fps - 1, as SVD was trained
DECODE_CHUNK = 8
MOST_PIXELS = 500_000  # of a photo that the published model is given
SCALE_STEP = 0.01
PLANES = 2  # channels of `spread_latent` beside the latent


RHO = 7.0  # how steps crowd at low noise (Karras et al., equation 5)


@dataclass
class ReferencePipeline:
    """The four components of the reference and the way Learn2Refocus drives them.

    `pipeline(photo [1,3,H,W] in [-1,1], position 0..8) -> stack [9,3,H,W] in [-1,1]`;
    H and W are multiples of 64.

    few_steps: the default way of a consistency model, whose steps jump to clean latents; None for a
    denoiser.
    """

    vae: AutoencoderKLTemporalDecoder
    unet: UNetSpatioTemporalConditionModel
    image_encoder: CLIPVisionModelWithProjection
    scheduler: EulerDiscreteScheduler
    name: str = "default"
    few_steps: Sampling | None = None

    def __call__(
        self,
        photo: Tensor,
        position: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Sample a focal stack, by default in the way of this reference, `self.sampling`."""
        check_input(self.name, photo, position)
        noise = torch.randn(
            self.latent_shape(photo), generator=torch.Generator().manual_seed(seed)
        ).to(photo)
        latents = self.sample(photo, position, noise, sampling, progress)
        stack = self.decode(latents)
        if self.relative:
            stack = stack + self.lost_detail(photo)
        return stack.clamp(-1.0, 1.0)

    @property
    def relative(self) -> bool:
        """Whether latents are denoised as differences to the photo's; the published model: no."""
        return bool(self.vae.config.get("relative_latents", False))

    @property
    def sampling(self) -> Sampling:
        """The default way, see `own_sampling`."""
        return own_sampling(self.few_steps, self.relative)

    def latent_shape(self, photo: Tensor) -> tuple[int, int, int, int, int]:
        """Return (1, T, C, h, w) of the latents of `photo` [1,3,H,W]."""
        factor = latent_factor(self.vae)
        height, width = photo.shape[-2] // factor, photo.shape[-1] // factor
        return (1, FRAMES, self.vae.config.latent_channels, height, width)

    @torch.no_grad()
    def sample(
        self,
        photo: Tensor,
        position: int,
        noise: Tensor,
        sampling: Sampling | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Take Euler steps from `noise` [1,T,C,h,w] (unit variance) to scaled latents, same shape.

        With `relative`, what is denoised is the difference to the photo's own scaled latent, which
        is added at the end (cf. ResShift, arXiv 2307.12348, for super-resolution).
        """
        how = sampling or self.sampling
        scheduler = EulerDiscreteScheduler.from_config(self.scheduler.config)
        if self.few_steps is None:
            scheduler.set_timesteps(how.steps, device=noise.device)
        else:
            ways = torch.arange(how.steps) / how.steps
            sigmas = [*karras_sigmas(scheduler.config, ways).tolist(), 0.0]
            scheduler.set_timesteps(sigmas=sigmas, device=noise.device)
        latent, basis = self.encode(photo), self.basis(photo)
        condition = self.condition(latent, torch.tensor([position]))
        embedding = self.embed(photo)
        ids = added_time_ids(1, noise)
        latents = how.temperature * noise * scheduler.init_noise_sigma
        timesteps = scheduler.timesteps
        for t in track(timesteps, "denoising", len(timesteps)) if progress else timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            velocity = self.denoise(scaled, t, condition, embedding, ids, basis)
            if how.guidance != 1.0:
                zero = (torch.zeros_like(condition), torch.zeros_like(embedding))
                unconditional = self.denoise(scaled, t, *zero, ids, torch.zeros_like(basis))
                velocity = unconditional + how.guidance * (velocity - unconditional)
            latents = scheduler.step(velocity, t, latents).prev_sample
        if self.relative:
            latents = latents + self.vae.config.scaling_factor * latent[:, None]
        return latents

    def condition(self, latent: Tensor, positions: Tensor) -> Tensor:
        """Return what the UNet sees beside the noisy latents, from photos' latents [B,C,h,w] at
        `positions` [B]: [B,T,C,h,w] as in Learn2Refocus; [B,T,C+2,h,w], see `spread_latent`, when
        relative."""
        place = spread_latent if self.relative else place_latent
        return place(latent, positions)

    def denoise(
        self,
        scaled: Tensor,
        t: Tensor,
        condition: Tensor,
        embedding: Tensor,
        ids: Tensor,
        basis: Tensor,
    ) -> Tensor:
        """Evaluate the UNet once: v-prediction [B,T,C,h,w] from scaled noisy latents [B,T,C,h,w],
        its condition, CLIP embedding [B,1,E], and the photo's `basis` [B,G,C,h,w].

        The UNet's last G channels weigh the directions of the basis.
        """
        inputs = torch.cat([scaled, condition], dim=2)
        output: Tensor = self.unet(
            inputs, t, encoder_hidden_states=embedding, added_time_ids=ids, return_dict=False
        )[0]
        if not basis.shape[1]:
            return output
        channels = scaled.shape[2]
        velocity, weights = output[:, :, :channels], output[:, :, channels:]
        return velocity + torch.einsum("btghw,bgchw->btchw", weights, basis)

    def basis(self, photos: Tensor) -> Tensor:
        """Return what defocus does to photos [B,3,H,W], in scaled latents: [B,G,C,h,w].

        A relative reference's denoiser so predicts how much a place gets blurred (or, with a weight
        below zero, sharpened), as kernel prediction does (arXiv 1712.02327), beside the difference
        itself. G is 0 for the published model.
        """
        if not self.relative:
            return photos.new_zeros(len(photos), 0, 1, 1, 1)
        factor: float = self.vae.config.scaling_factor
        return factor * defocus_basis(self.vae, photos)

    def encode(self, photos: Tensor) -> Tensor:
        """Return the mode of the VAE posterior, *not* multiplied by the scaling factor: [B,3,H,W]
        in [-1,1] -> [B,C,h,w]."""
        mode: Tensor = self.vae.encode(photos).latent_dist.mode()
        return mode

    def embed(self, photos: Tensor, form: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Embed images by CLIP as the single cross-attention token: [B,3,H,W] -> [B,1,E].

        Without a `form` as the published inference does, whose results are the paper's, though its
        training brings pixels to another range (`training_pixels`); a relative reference as it was
        trained.
        """
        form = form or (own_pixels if self.relative else published_pixels)
        embedding: Tensor = self.image_encoder(form(photos)).image_embeds
        return embedding[:, None]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [1,T,C,h,w] to a stack [T,3,H,W], in chunks of 8 frames."""
        unscaled = latents[0] / self.vae.config.scaling_factor
        frames = [
            self.vae.decode(chunk, num_frames=len(chunk)).sample
            for chunk in unscaled.split(DECODE_CHUNK)
        ]
        return torch.cat(frames).float()

    @torch.no_grad()
    def lost_detail(self, photo: Tensor) -> Tensor:
        """Return what the autoencoder loses of the photo [1,3,H,W] at each of the positions,
        [T,3,H,W]."""
        latent = self.vae.config.scaling_factor * self.encode(photo)
        return photo - self.decode(latent[:, None].expand(-1, FRAMES, -1, -1, -1))


def published_size(photo: Size) -> Size:
    """Return the size at which Learn2Refocus works on a photo of (H, W), never above its own.

    The scale falls from 1 by hundredths until the sides, each floored to a multiple of 64, hold
    500,000 pixels at most: 832×576 for the data set's 896×640. A side below 64 becomes 64.
    """
    scale = 1.0
    while True:
        height, width = (max(1, int(side * scale) // MULTIPLE) * MULTIPLE for side in photo)
        if height * width <= MOST_PIXELS:
            return height, width
        scale -= SCALE_STEP


def karras_sigmas(config: Any, ways: Tensor) -> Tensor:
    """Return noise levels of a scheduler's config, from sigma_max at 0 to sigma_min at 1 of `ways`
    [N] (Karras et al., equation 5): [N].

    A denoiser's N steps end at 1. A consistency model's start at 0, 1/N, …: one that starts where
    there is no noise is wasted.
    """
    first, last = config.sigma_max ** (1 / RHO), config.sigma_min ** (1 / RHO)
    sigmas: Tensor = (first + ways * (last - first)) ** RHO
    return sigmas


def place_latent(latent: Tensor, positions: Tensor) -> Tensor:
    """Return Learn2Refocus's condition [B,T,C,h,w]: latents [B,C,h,w] of photos at their own frames
    `positions` [B], zeros at the other eight."""
    condition = latent.new_zeros(len(latent), FRAMES, *latent.shape[1:])
    condition[torch.arange(len(latent)), positions] = latent
    return condition


def spread_latent(latent: Tensor, positions: Tensor) -> Tensor:
    """Return the condition of a relative reference, [B,T,C+2,h,w]: latents [B,C,h,w] of photos at
    every frame, as in Stable Video Diffusion, and two channels in [-1,1]: the frame's distance from
    the photo's own, (frame - position) / 8, and the photo's position, position / 4 - 1.

    With `place_latent` eight frames of nine can learn of the photo through temporal layers only. A
    network that starts at random then denoises without it: after 4000 steps its estimate from pure
    noise was still zero.
    """
    height, width = latent.shape[-2:]
    frame, own = torch.arange(FRAMES).to(latent), positions[:, None].to(latent)
    distance = (frame - own) / (FRAMES - 1)
    planes = torch.stack([distance, (2 * own / (FRAMES - 1) - 1).expand_as(distance)], dim=2)
    everywhere = latent[:, None].expand(-1, FRAMES, -1, -1, -1)
    planes = planes[..., None, None].expand(-1, -1, -1, height, width)
    return torch.cat([everywhere, planes], dim=2)


def added_time_ids(batch: int, like: Tensor) -> Tensor:
    """Return SVD's micro-conditioning [B,3]: fps - 1, motion bucket, noise augmentation."""
    return like.new_tensor([[FPS_ID, MOTION_BUCKET, NOISE_AUGMENTATION]]).repeat(batch, 1)
