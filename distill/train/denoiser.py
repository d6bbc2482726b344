"""Train the reference's denoiser and image encoder as Learn2Refocus does (design: EDM, v-form).

Targets are scaled VAE latents of true focal stacks, for the small default reference relative to
the input's; the condition is the latent of one slightly noisy frame.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from pocketfocus.data.optics import FRAMES
from pocketfocus.distill.reference.autoencoder import middle
from pocketfocus.distill.train import edm
from pocketfocus.distill.train.distributed import computes_in_bf16
from pocketfocus.distill.train.run_log import stack_picture
from pocketfocus.models.reference import ReferencePipeline, added_time_ids
from pocketfocus.photos.images import from_uint8
from pocketfocus.run.progress import track

SCALING_STACKS = 64
# This share of the small reference's samples starts from nothing: one fixed noise level without
# noise, as E2E-FT (arXiv 2409.11355) trains. They teach the mean of all stacks that fit the photo.
BLANK_SHARE = 0.8
FLOOR = 4e-4  # squared error in [-1,1], 40 dB: better frames need not get better still
LATENT_GAIN, PLANE_GAIN = 3.0, 60.0
PICTURE_POSITION, PICTURE_STEPS = 4, 10  # steps where the published way takes 25


class Denoiser(nn.Module):
    """What is trained: the UNet and, in the small default reference, the image encoder."""

    def __init__(self, pipeline: ReferencePipeline) -> None:
        super().__init__()
        self.unet, self.image_encoder = pipeline.unet, pipeline.image_encoder


@torch.no_grad()
def initialise_denoiser(
    unet: UNetSpatioTemporalConditionModel, deviation: Tensor | None = None
) -> None:
    """Residual branches and the output start at zero (Fixup, arXiv 1901.09321): the same loss in
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


def channel_deviation(latents: np.ndarray, generator: torch.Generator) -> Tensor:
    """[C], the standard deviation of each channel of latents [N,9,C,h,w]."""
    n = torch.randint(0, len(latents), (SCALING_STACKS,), generator=generator).numpy()
    frames = np.stack([latents[i, FRAMES // 2] for i in n]).astype(np.float32)
    return torch.from_numpy(frames.std((0, 2, 3)))


@torch.no_grad()
def encode_stacks(
    pipeline: ReferencePipeline, stacks: np.ndarray, bf16: bool | None = None
) -> np.ndarray:
    """Unscaled latents of every frame, computed once: uint8 [N,9,3,H,W] -> float16 [N,9,C,h,w]."""
    encoded, device = [], pipeline.vae.device
    bf16 = computes_in_bf16(device) if bf16 is None else bf16
    for stack in track(stacks, "encoding stacks", len(stacks)):
        frames = from_uint8(stack, planar=True).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            latents = pipeline.encode(frames)
        encoded.append(latents.half().cpu().numpy())
    return np.stack(encoded)


def relative_scaling_factor(latents: np.ndarray, generator: torch.Generator) -> float:
    """One over the deviation of latents [N,9,C,h,w] from those of another frame of their stack."""
    n = torch.randint(0, len(latents), (SCALING_STACKS,), generator=generator).numpy()
    p = torch.randint(0, FRAMES, (SCALING_STACKS,), generator=generator).numpy()
    stacks = np.stack([latents[i] for i in n]).astype(np.float32)
    differences = stacks - stacks[np.arange(len(p)), p][:, None]
    return float(1 / np.sqrt(np.mean(differences**2)))


def crop_batch(
    stacks: np.ndarray, latents: np.ndarray, batch: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Matching random crops: frames [B,9,3,size,size] in [-1,1], latents [B,9,C,size/f,size/f]."""
    factor = stacks.shape[-1] // latents.shape[-1]
    small = size // factor
    frames, cropped = [], []
    for _ in range(batch):
        n, y, x = (
            int(torch.randint(0, limit, (), generator=generator))
            for limit in (len(stacks), *(s - small + 1 for s in latents.shape[-2:]))
        )
        window = stacks[n, :, :, y * factor : y * factor + size, x * factor : x * factor + size]
        frames.append(torch.from_numpy(np.array(window)))
        cropped.append(torch.from_numpy(latents[n, :, :, y : y + small, x : x + small].copy()))
    return from_uint8(torch.stack(frames), planar=True), torch.stack(cropped).float()


def draw_sample(
    pipeline: ReferencePipeline,
    stacks: np.ndarray,
    latents: np.ndarray,
    size: int,
    generator: torch.Generator,
) -> tuple[Tensor, ...]:
    """One sample of `denoiser_losses`, a random crop of a random stack and all its noise.

    The input position is uniform over the nine. Noise is drawn here, on the CPU, so that it is the
    same on every device and for any number of processes.
    """
    frames, cropped = crop_batch(stacks, latents, 1, size, generator)
    position = torch.randint(0, FRAMES, (1,), generator=generator)
    photo = frames[:, int(position)]
    spoiled = edm.RELATIVE if pipeline.relative else edm.LEARN2REFOCUS
    level = edm.sample_sigma(1, spoiled.mean, spoiled.std, generator)
    grainy = photo + level.reshape(-1, 1, 1, 1) * torch.randn(photo.shape, generator=generator)
    keep_embedding, keep_latent = edm.condition_masks(1, generator, spoiled.dropout)
    sigma = edm.sample_sigma(1, edm.P_MEAN, edm.P_STD, generator)
    if pipeline.relative:
        cropped = cropped - cropped[:, int(position)][:, None]
    clean = cropped * pipeline.vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=generator)
    if pipeline.relative and float(torch.rand((), generator=generator)) < BLANK_SHARE:
        sigma = torch.full((1,), float(pipeline.scheduler.config.sigma_max))
        noise = -clean / sigma
    return photo, grainy, position, keep_embedding, keep_latent, clean, sigma, noise


def denoiser_losses(
    pipeline: ReferencePipeline,
    photos: Tensor,
    grainy: Tensor,
    positions: Tensor,
    keep_embedding: Tensor,
    keep_latent: Tensor,
    clean: Tensor,
    sigma: Tensor,
    noise: Tensor,
) -> dict[str, Tensor]:
    """The EDM loss, where the pipeline is relative `log_error`: photos, and with condition noise,
    [B,3,H,W]; positions, keep masks and sigma [B]; scaled latents (differences, where the pipeline
    is relative) and their noise [B,9,C,h,w].

    Returns scalars: loss, mse of the latents and, of a relative one, gain_db over no difference.
    """
    batch = len(photos)
    noisy = clean + sigma.reshape(-1, 1, 1, 1, 1) * noise
    with torch.no_grad():
        latent = pipeline.encode(grainy).float()
    condition = pipeline.condition(latent, positions) * keep_latent.reshape(-1, 1, 1, 1, 1)
    embedding = pipeline.embed(photos) * keep_embedding.reshape(-1, 1, 1)
    with torch.no_grad():
        basis = pipeline.basis(photos) * keep_latent.reshape(-1, 1, 1, 1, 1)
    velocity = pipeline.denoise(
        edm.scale_input(noisy, sigma),
        edm.timestep(sigma),
        condition,
        embedding,
        added_time_ids(batch, clean),
        basis,
    )
    estimate = edm.denoised(velocity.float(), noisy, sigma)
    mse = (estimate - clean).detach().pow(2).mean()
    if not pipeline.relative:
        return {"loss": edm.weighted_loss(estimate, clean, sigma), "mse": mse}
    energy = pixel_energy(pipeline)
    loss = log_error(estimate - clean, energy)
    gain = (log_error(clean, energy) - loss.detach()) * 10 / math.log(10)
    return {"loss": loss, "mse": mse, "gain_db": gain}


def pixel_energy(pipeline: ReferencePipeline) -> Tensor:
    """[C], the mean squared error in pixels for an error of 1 in a channel of scaled latents, of
    the linear part of the decoder."""
    kernels: Tensor = pipeline.vae.decoder_shortcut.weight.detach()  # [C,3,f,f]
    return (kernels / pipeline.vae.config.scaling_factor).square().mean((1, 2, 3))


def log_error(error: Tensor, energy: Tensor) -> Tensor:
    """Mean over frames of the log of the squared error in pixels, of errors in scaled latents
    [B,T,C,h,w]: the mean PSNR of the frames, that of noisy samples included.

    Likewise EDM2 (arXiv 2312.02696, section 3.2) learns u of the noise level in L / exp(u) + u,
    which is smallest, log L + 1, at u = log L. In scaled latents, fine detail that no photo tells
    of would outweigh all else.
    """
    squared = (error.square() * energy[:, None, None]).sum(2).mean((-1, -2))
    return (squared + FLOOR).log().mean()


def refocused_picture(pipeline: ReferencePipeline, stacks: np.ndarray, size: int) -> Tensor:
    """Input, truth and estimate of the middle of the first stack, uint8 [N,9,3,H,W], as rows of an
    image [3,3·size,9·size] in [-1,1]."""
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
