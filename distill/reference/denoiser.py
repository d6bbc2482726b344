"""Train the reference's denoiser and image encoder in Learn2Refocus's formulation, EDM's v-form.

What is learned are scaled VAE latents of true focal stacks, for the small default reference
relative to the input's; the condition is the latent of one slightly noisy frame.

Legend: N stacks, B batch, C latent channels, H, W pixels, h, w latent size, s of a crop.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from pocketfocus.distill.train import edm
from pocketfocus.distill.train.crops import Pixels, middle
from pocketfocus.distill.train.distributed import (
    computes_in_bf16,
    main_process_first,
    process_state,
)
from pocketfocus.distill.train.edm import Denoiser
from pocketfocus.distill.train.run_log import stack_picture
from pocketfocus.models.reference import ReferencePipeline, added_time_ids
from pocketfocus.photos.images import from_uint8
from pocketfocus.run.cache import Kept
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.files import key_of, reserve, write_atomic
from pocketfocus.run.progress import track

SCALING_STACKS, HASHED_STACKS = 64, 8
SAVED_STACKS = 32  # encoded ones, after which an interrupted encoding goes on
CONTENT = "content of stacks"  # in the config of a training: a key of what they were gathered from
# This share of the small reference's samples starts from nothing: one fixed noise level without
# noise, as E2E-FT (arXiv 2409.11355) trains. They teach the mean of all stacks that fit the photo.
BLANK_SHARE = 0.8
FLOOR = 4e-4  # squared error in [-1,1], 40 dB: better frames need not get better still
LATENT_GAIN, PLANE_GAIN = 3.0, 60.0
PICTURE_POSITION, PICTURE_STEPS = 4, 10  # steps where the published way takes 25


@dataclass(frozen=True)
class EncodedStacks:
    """True focal stacks, uint8 [N,9,3,H,W], and their unscaled latents, float [N,9,C,h,w]."""

    pixels: Pixels
    latents: np.ndarray

    def crop(self, batch: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw matching random crops: frames [B,9,3,s,s] in [-1,1], latents [B,9,C,s/f,s/f]."""
        factor = self.pixels.shape[-1] // self.latents.shape[-1]
        small = size // factor
        frames, cropped = [], []
        for _ in range(batch):
            n, y, x = (
                int(torch.randint(0, limit, (), generator=generator))
                for limit in (len(self.pixels), *(s - small + 1 for s in self.latents.shape[-2:]))
            )
            top, left = y * factor, x * factor
            window = self.pixels[n, :, :, top : top + size, left : left + size]
            frames.append(torch.from_numpy(np.array(window)))
            window = self.latents[n, :, :, y : y + small, x : x + small]
            cropped.append(torch.from_numpy(window.copy()))
        return from_uint8(torch.stack(frames), planar=True), torch.stack(cropped).float()

    def channel_deviation(self, generator: torch.Generator) -> Tensor:
        """Measure the standard deviation [C] of each channel."""
        n = torch.randint(0, len(self.latents), (SCALING_STACKS,), generator=generator).numpy()
        frames = np.stack([self.latents[i, FRAMES // 2] for i in n]).astype(np.float32)
        return torch.from_numpy(frames.std((0, 2, 3)))

    def relative_scaling_factor(self, generator: torch.Generator) -> float:
        """Measure one over the deviation of latents from those of another frame of their stack."""
        n = torch.randint(0, len(self.latents), (SCALING_STACKS,), generator=generator).numpy()
        p = torch.randint(0, FRAMES, (SCALING_STACKS,), generator=generator).numpy()
        stacks = np.stack([self.latents[i] for i in n]).astype(np.float32)
        differences = stacks - stacks[np.arange(len(p)), p][:, None]
        return float(1 / np.sqrt(np.mean(differences**2)))


@torch.no_grad()
def encode_stack(
    pipeline: ReferencePipeline, stack: Pixels, bf16: bool | None = None
) -> np.ndarray:
    """Encode every frame, uint8 [9,3,H,W] -> unscaled latents, float16 [9,C,h,w]."""
    device = pipeline.vae.device
    bf16 = computes_in_bf16(device) if bf16 is None else bf16
    frames = from_uint8(stack, planar=True).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        latents = pipeline.encode(frames)
    return latents.half().cpu().numpy()


def encoded_once(
    path: Path,
    pipeline: ReferencePipeline,
    stacks: Pixels,
    encode: Callable[[ReferencePipeline, Pixels], np.ndarray],
    content: object = None,
) -> np.ndarray:
    """Return what `encode` makes of each stack with the autoencoder, in one process, and keep it
    beside `path`, in a file that is named after both and after `content`, what the stacks are of,
    so that others are never taken for them: what was kept of others is deleted.
    """
    known = key_of(
        stacks=fingerprint(stacks),
        content=content,
        vae=identity(pipeline.vae.encoder.conv_in.weight),
    )
    kept = path.with_name(f"{path.stem}-{known}.npy")
    with main_process_first():
        if not kept.exists():
            for other in path.parent.glob(f"{path.stem}-*"):
                if known not in other.name:
                    other.unlink()
            pipeline.vae.to(process_state().device)
            _encode(kept, stacks, partial(encode, pipeline))
    return np.load(kept, mmap_mode="r")


def _encode(path: Path, stacks: Pixels, encode: Callable[[Pixels], np.ndarray]) -> None:
    """Encode stack by stack into a file; an interrupted encoding goes on."""
    part, begun = path.with_suffix(".part"), Kept(path.with_suffix(".json"), path.name)
    done = begun.fields.get("done", 0) if part.exists() else 0
    if done == 0:
        first = encode(stacks[0])
        with write_atomic(part) as scratch:
            shape = (len(stacks), *first.shape)
            np.lib.format.open_memmap(scratch, "w+", first.dtype, shape).flush()
            reserve(scratch)
    made = np.lib.format.open_memmap(part, "r+")
    for n in track(range(done, len(stacks)), "encoding stacks", len(stacks) - done):
        made[n] = encode(stacks[n])
        if (n + 1) % SAVED_STACKS == 0:
            made.flush()
            begun.save(done=n + 1)
    made.flush()
    part.replace(path)
    begun.path.unlink(missing_ok=True)


def fingerprint(stacks: Pixels) -> str:
    """Name stacks by their shape and a hash of a few, for the config of a training on them."""
    chosen = np.unique(np.linspace(0, len(stacks) - 1, HASHED_STACKS).astype(int))
    digest = hashlib.sha256()
    for index in chosen:
        digest.update(np.ascontiguousarray(stacks[index]).tobytes())
    return f"{'x'.join(map(str, stacks.shape))} {digest.hexdigest()[:12]}"


def identity(*weights: Tensor) -> str:
    """Hash weights of a model's first layers, which tell it from others of its form: a checkpoint
    holds what is trained, no more."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def initialise_denoiser(
    unet: UNetSpatioTemporalConditionModel, deviation: Tensor | None = None
) -> None:
    """Start residual branches and the output at zero (Fixup, arXiv 1901.09321): the same loss in
    about a third fewer of the first hundred steps.

    deviation: [C] of the unscaled latents, for a relative reference. The channels of its condition
    then start equally loud, the many of fine detail beside the few of colour.
    """
    for module in unet.modules():
        if isinstance(module, (ResnetBlock2D, TemporalResnetBlock)):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, TransformerSpatioTemporalModel):
            nn.init.zeros_(module.proj_out.weight)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    if deviation is not None:
        channels = len(deviation)
        unet.conv_in.weight[:, channels : 2 * channels] *= LATENT_GAIN / deviation[:, None, None]
        unet.conv_in.weight[:, 2 * channels :] *= PLANE_GAIN


class DenoiserBatch(NamedTuple):
    """What `denoiser_losses` takes."""

    photos: Tensor  # [B,3,H,W] in [-1,1]
    grainy: Tensor  # the same with the noise of the condition
    positions: Tensor  # [B], of the photos
    keep_embedding: Tensor  # [B], 0.0 where the embedding is dropped
    keep_latent: Tensor  # [B], 0.0 where the condition is dropped
    clean: Tensor  # scaled latents [B,9,C,h,w], differences where the pipeline is relative
    sigma: Tensor  # [B], noise levels
    noise: Tensor  # of unit variance, as `clean`


def draw_sample(
    pipeline: ReferencePipeline, stacks: EncodedStacks, size: int, generator: torch.Generator
) -> DenoiserBatch:
    """Draw a random crop of a random stack and all its noise.

    The input position is uniform over the nine. Noise is drawn here, on the CPU, so that it is the
    same on every device and for any number of processes.
    """
    frames, cropped = stacks.crop(1, size, generator)
    position = torch.randint(0, FRAMES, (1,), generator=generator)
    photo = frames[:, int(position)]
    spoiled = edm.RELATIVE if pipeline.relative else edm.LEARN2REFOCUS
    level = edm.sample_sigma(1, spoiled.mean, spoiled.std, generator)
    grain = torch.randn(photo.shape, generator=generator)
    grainy = photo + edm.append_dims(level, photo.ndim) * grain
    keep_embedding, keep_latent = edm.condition_masks(1, generator, spoiled.dropout)
    sigma = edm.sample_sigma(1, edm.P_MEAN, edm.P_STD, generator)
    if pipeline.relative:
        cropped = cropped - cropped[:, int(position)][:, None]
    clean = cropped * pipeline.vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=generator)
    if pipeline.relative and float(torch.rand((), generator=generator)) < BLANK_SHARE:
        sigma = torch.full((1,), float(pipeline.scheduler.config.sigma_max))
        noise = -clean / sigma
    return DenoiserBatch(photo, grainy, position, keep_embedding, keep_latent, clean, sigma, noise)


@dataclass(frozen=True)
class Given:
    """What the UNet is given beside noisy latents, see `ReferencePipeline.denoise`."""

    condition: Tensor
    embedding: Tensor
    basis: Tensor

    def dropped(self) -> Given:
        """Give nothing: the other side of the guidance."""
        return Given(*(torch.zeros_like(part) for part in vars(self).values()))


def estimate(pipeline: ReferencePipeline, noisy: Tensor, sigma: Tensor, given: Given) -> Tensor:
    """Estimate clean scaled latents [B,9,C,h,w] from noisy ones at levels [B], without guidance."""
    ids = added_time_ids(len(noisy), noisy)
    denoiser = Denoiser(pipeline.denoise)
    return denoiser(noisy, sigma, given.condition, given.embedding, ids, given.basis)


def denoiser_losses(pipeline: ReferencePipeline, batch: DenoiserBatch) -> dict[str, Tensor]:
    """Compute the EDM loss; where the pipeline is relative `log_error`.

    Returns scalars: loss, mse of the latents and, of a relative one, gain_db over no difference.
    """
    clean, sigma = batch.clean, batch.sigma
    noisy = clean + edm.append_dims(sigma, clean.ndim) * batch.noise
    keep_latent = edm.append_dims(batch.keep_latent, clean.ndim)
    with torch.no_grad():
        latent = pipeline.encode(batch.grainy).float()
    condition = pipeline.condition(latent, batch.positions) * keep_latent
    embedding = pipeline.embed(batch.photos) * edm.append_dims(batch.keep_embedding, 3)
    with torch.no_grad():
        basis = pipeline.basis(batch.photos) * keep_latent
    made = estimate(pipeline, noisy, sigma, Given(condition, embedding, basis))
    mse = (made - clean).detach().pow(2).mean()
    if not pipeline.relative:
        return {"loss": edm.weighted_loss(made, clean, sigma), "mse": mse}
    energy = pixel_energy(pipeline)
    loss = log_error(made - clean, energy)
    gain = (log_error(clean, energy) - loss.detach()) * 10 / math.log(10)
    return {"loss": loss, "mse": mse, "gain_db": gain}


def pixel_energy(pipeline: ReferencePipeline) -> Tensor:
    """Return the mean squared error in pixels [C] for an error of 1 in a channel of scaled latents,
    of the linear part of the decoder."""
    kernels: Tensor = pipeline.vae.decoder_shortcut.weight.detach()  # [C,3,f,f]
    return (kernels / pipeline.vae.config.scaling_factor).square().mean((1, 2, 3))


def log_error(error: Tensor, energy: Tensor) -> Tensor:
    """Average, over frames, the log of the squared error in pixels of errors in scaled latents
    [B,T,C,h,w]: the mean PSNR of the frames, that of noisy samples included.

    Likewise EDM2 (arXiv 2312.02696, section 3.2) learns u of the noise level in L / exp(u) + u,
    which is smallest, log L + 1, at u = log L. In scaled latents, fine detail that no photo tells
    of would outweigh all else.
    """
    squared = (error.square() * energy[:, None, None]).sum(2).mean((-1, -2))
    return (squared + FLOOR).log().mean()


def refocused_picture(pipeline: ReferencePipeline, stacks: Pixels, size: int) -> Tensor:
    """Show input, truth and estimate of the middle of the first stack, uint8 [N,9,3,H,W], as rows
    of an image [3,3·size,9·size] in [-1,1]."""
    device = pipeline.unet.device
    truth = middle(stacks[0], size).to(device)
    photo = truth[PICTURE_POSITION][None]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(pipeline.latent_shape(photo), generator=generator).to(device)
    steps = min(pipeline.sampling.steps, PICTURE_STEPS)
    with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(device)):
        sampling = replace(pipeline.sampling, steps=steps)
        made = pipeline.decode(pipeline.sample(photo, PICTURE_POSITION, noise, sampling))
        if pipeline.relative:
            made = made + pipeline.lost_detail(photo)
    return stack_picture(truth, made, PICTURE_POSITION)
