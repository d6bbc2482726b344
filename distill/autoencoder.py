"""Train the reference's autoencoder on focal stacks.

Kingma & Welling, arXiv 1312.6114, with pixel losses only: frames are decoded in chunks of 8, as
the pipeline decodes them, so the temporal layers see at training what they see at inference.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import Tensor, nn

from pocketfocus.autoencoder import CompactAutoencoder
from pocketfocus.optics import FRAMES
from pocketfocus.reference import DECODE_CHUNK

KL_WEIGHT = 1e-8
INITIAL_LOG_VARIANCE = -10.0
CHUNK_SHARE = 0.25
WHITENING = 0.5  # 0: latents keep the components' deviations; 1: all have deviation 1
Stacks = np.ndarray  # uint8 [N, 9, 3, H, W]


def random_crops(stacks: Stacks, batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Flipped random crops of random stacks: uint8 [N,9,3,H,W] -> float [B,9,3,size,size]."""
    height, width = stacks.shape[-2:]
    crops = []
    for _ in range(batch):
        n, y, x, flip = (
            int(torch.randint(0, limit, (), generator=generator))
            for limit in (len(stacks), height - size + 1, width - size + 1, 2)
        )
        crop = torch.from_numpy(np.ascontiguousarray(stacks[n, :, :, y : y + size, x : x + size]))
        crops.append(crop.flip(-1) if flip else crop)
    return torch.stack(crops).float() / 127.5 - 1


@torch.no_grad()
def initialise(vae: CompactAutoencoder, frames: Tensor) -> None:
    """Start at the principal components of frames [N,3,H,W] in [-1,1]: the shortcuts are the linear
    autoencoder, the networks beside them start at zero (Fixup, arXiv 1901.09321).

    Whitening by half (see `principal_components`) keeps fine detail, which has a hundredth of the
    brightness's deviation, within reach of the denoiser.
    """
    components, deviation = principal_components(frames, vae.encoder_shortcut.kernel_size[0])
    components = components[: vae.config.latent_channels]
    scale = deviation[: len(components), None, None, None] ** WHITENING
    colour = frames.mean(dim=(0, 2, 3))
    state = {
        "encoder_shortcut.weight": components / scale,
        "encoder_shortcut.bias": -(components / scale).sum(dim=(2, 3)) @ colour,
        "decoder_shortcut.weight": components * scale,
        "decoder_shortcut.bias": colour,
    }
    vae.load_state_dict(state, strict=False)
    for module in vae.modules():
        if isinstance(module, (ResnetBlock2D, TemporalResnetBlock)):
            nn.init.zeros_(module.conv2.weight)
    mean, log_variance = vae.quant_conv.bias.chunk(2)
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.copy_(
        torch.cat([torch.zeros_like(mean), torch.full_like(log_variance, INITIAL_LOG_VARIANCE)])
    )
    nn.init.zeros_(vae.decoder.conv_out.weight)
    nn.init.zeros_(vae.decoder.conv_out.bias)
    nn.init.dirac_(vae.decoder.time_conv_out.weight)
    nn.init.zeros_(vae.decoder.time_conv_out.bias)


def principal_components(frames: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Of the patches of frames [N,3,H,W], about their mean colour: components
    [3·patch²,3,patch,patch], strongest first, and their standard deviations [3·patch²]."""
    centred = frames - frames.mean(dim=(0, 2, 3), keepdim=True)
    patches = F.pixel_unshuffle(centred, patch).permute(0, 2, 3, 1).flatten(0, 2)
    variance, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
    order = torch.arange(len(variance) - 1, -1, -1)
    components = vectors.T[order].float().reshape(-1, 3, patch, patch)
    return components, variance[order].clamp(min=1e-12).sqrt().float()


def autoencoder_batch(
    stacks: Stacks, frames: int, size: int, generator: torch.Generator
) -> tuple[Tensor, int]:
    """`frames` crops [frames,3,size,size]: one frame each of many stacks, or, one time in four,
    one chunk of a single stack, so that the temporal layers learn from focal stacks too.

    Returns the crops and the number of frames that belong together.
    """
    together = bool(torch.rand((), generator=generator) < CHUNK_SHARE)
    if together:
        crops = random_crops(stacks, 1, size, generator)[0, :DECODE_CHUNK]
        return crops, len(crops)
    crops = random_crops(stacks, frames, size, generator)
    chosen = torch.randint(0, FRAMES, (frames,), generator=generator)
    return crops[torch.arange(frames), chosen], 1


def autoencoder_losses(
    vae: CompactAutoencoder, frames: Tensor, together: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Reconstruction and KL terms for frames [N,3,H,W] in [-1,1], decoded `together` at a time."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(frames).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        latents = posterior.mean + posterior.std * noise
        decoded = vae.decode(latents, num_frames=together).sample
    decoded = decoded.float()
    squared, absolute = F.mse_loss(decoded, frames), F.l1_loss(decoded, frames)
    kl = posterior.kl().float().mean()
    psnr = 10 * torch.log10(4 / squared.detach())
    loss = absolute + 2 * squared + KL_WEIGHT * kl
    return {"loss": loss, "l1": absolute, "kl": kl, "psnr_db": psnr}


@torch.no_grad()
def scaling_factor(vae: CompactAutoencoder, frames: Tensor) -> float:
    """One over the standard deviation of the latents of frames [N,3,H,W] (arXiv 2112.10752)."""
    return float(1 / vae.encode(frames).latent_dist.mode().std())
