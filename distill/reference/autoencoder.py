"""Train the reference's autoencoder on focal stacks.

Kingma & Welling, arXiv 1312.6114, with pixel losses only: frames are decoded in chunks of 8, as
the pipeline decodes them, so the temporal layers see at training what they see at inference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import Tensor, nn

from pocketfocus.distill.train.crops import Pixels, middle, random_crops
from pocketfocus.distill.train.run_log import stack_picture
from pocketfocus.models.autoencoder import CompactAutoencoder, latent_factor
from pocketfocus.models.reference import DECODE_CHUNK
from pocketfocus.run.constants import FRAMES

KL_WEIGHT = 1e-8
INITIAL_LOG_VARIANCE = -10.0
CHUNK_SHARE = 0.25
WHITENING = 0.5  # 0: latents keep the components' deviations; 1: all have deviation 1


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
    """Analyse the patches of frames [N,3,H,W] about their mean colour: components
    [3·patch²,3,patch,patch], strongest first, and their standard deviations [3·patch²]."""
    centred = frames - frames.mean(dim=(0, 2, 3), keepdim=True)
    patches = F.pixel_unshuffle(centred, patch).permute(0, 2, 3, 1).flatten(0, 2)
    variance, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
    order = torch.arange(len(variance) - 1, -1, -1)
    components = vectors.T[order].float().reshape(-1, 3, patch, patch)
    return components, variance[order].clamp(min=1e-12).sqrt().float()


def draw_group(
    vae: CompactAutoencoder, stacks: Pixels, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one sample of `autoencoder_losses`, as many frames as are decoded together.

    They are one frame each of many stacks or, one time in four, of a single one, so that the
    temporal layers learn from focal stacks too.

    Returns frames [1,8,3,size,size] in [-1,1], whether they are together [1], noise [1,8,C,h,w].
    """
    together = torch.rand(1, generator=generator) < CHUNK_SHARE
    if together:
        frames = random_crops(stacks, 1, size, generator)[0, :DECODE_CHUNK]
    else:
        crops = random_crops(stacks, DECODE_CHUNK, size, generator)
        chosen = torch.randint(0, FRAMES, (DECODE_CHUNK,), generator=generator)
        frames = crops[torch.arange(DECODE_CHUNK), chosen]
    small = size // latent_factor(vae)
    shape = (1, DECODE_CHUNK, vae.config.latent_channels, small, small)
    return frames[None], together, torch.randn(shape, generator=generator)


def autoencoder_losses(
    vae: CompactAutoencoder, frames: Tensor, together: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """Compute reconstruction and KL terms for what `draw_group` draws, [B,8,...]."""
    flat = frames.flatten(0, 1)
    posterior = vae.encode(flat).latent_dist
    latents = posterior.mean + posterior.std * noise.flatten(0, 1)
    decoded = torch.cat(
        [
            vae.decode(group, num_frames=DECODE_CHUNK if whole else 1).sample
            for group, whole in zip(latents.split(DECODE_CHUNK), together.tolist(), strict=True)
        ]
    ).float()
    squared, absolute = F.mse_loss(decoded, flat), F.l1_loss(decoded, flat)
    kl = posterior.kl().float().mean()
    psnr = 10 * torch.log10(4 / squared.detach())
    loss = absolute + 2 * squared + KL_WEIGHT * kl
    return {"loss": loss, "l1": absolute, "kl": kl, "psnr_db": psnr}


def reconstruction_picture(vae: CompactAutoencoder, stacks: Pixels, size: int) -> Tensor:
    """Show the middle of the first stack, uint8 [N,9,3,H,W], above its reconstruction: an image
    [3,2·size,9·size] in [-1,1]."""
    truth = middle(stacks[0], size).to(vae.device)
    latents = vae.encode(truth).latent_dist.mode()
    made = [vae.decode(part, num_frames=len(part)).sample for part in latents.split(DECODE_CHUNK)]
    return stack_picture(truth, torch.cat(made))


@torch.no_grad()
def scaling_factor(vae: CompactAutoencoder, frames: Tensor) -> float:
    """Measure 1 / standard deviation of the latents of frames [N,3,H,W] (arXiv 2112.10752)."""
    return float(1 / vae.encode(frames).latent_dist.mode().std())
