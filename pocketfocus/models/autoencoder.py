"""The temporal autoencoder of Stable Video Diffusion, changed to need little training.

It has linear shortcuts beside both halves, patches in place of pixels, and fewer groups in its
GroupNorms.

The shortcuts are those of deep compression autoencoders (Chen et al., arXiv 2410.10733), one
learned projection of each patch instead of space-to-channel averages: started at the principal
components, they reconstruct before the first training step, and the networks learn what is left.
Space-to-channel patches, of the same paper, let the networks work at the size of the latents: at
the size of the pixels, decoding took more than twice as much as denoising (123 against 52 GFLOPs).

diffusers fixes 32 groups. At 32 channels that is one channel a group: the last norm then removes
every channel's mean, and with it brightness and colour, so a narrow decoder cannot learn them
(measured here: 15.8 dB after 200 steps against 16.8 dB with 8 groups).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

from pocketfocus.data.optics import blurred, linear_to_srgb, srgb_to_linear

DOWN = "DownEncoderBlock2D"
QUARTERS = 4  # of a patch, each with its own weights in `defocus_basis`


class CompactAutoencoder(AutoencoderKLTemporalDecoder):  # type: ignore[misc]
    """`AutoencoderKLTemporalDecoder` with linear shortcuts, patches and `norm_num_groups` groups.

    Same arguments and contract otherwise: encode [B,3,H,W] -> posterior [B,C,H/f,W/f],
    decode [T,C,h,w] -> [T,3,H,W]. `relative_latents` and `defocus_radii` (pixels) say how the
    denoiser that comes with it was trained: see `ReferencePipeline`.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = (DOWN,),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        latent_channels: int = 96,
        sample_size: int = 256,
        scaling_factor: float = 1.0,
        force_upcast: bool = False,
        norm_num_groups: int = 8,
        relative_latents: bool = False,
        defocus_radii: tuple[float, ...] = (),
        patch: int = 8,
    ) -> None:
        super().__init__(
            in_channels=in_channels * patch**2,
            out_channels=out_channels * patch**2,
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            force_upcast=force_upcast,
        )
        # the parent's constructor has registered what it was given, patches
        self.register_to_config(in_channels=in_channels, out_channels=out_channels)
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = norm_num_groups
        factor = latent_factor(self)
        self.encoder_shortcut = nn.Conv2d(in_channels, latent_channels, factor, factor)
        self.decoder_shortcut = nn.ConvTranspose2d(latent_channels, out_channels, factor, factor)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Return the posterior of frames [B,3,H,W] in [-1,1]: network plus shortcut."""
        patches = F.pixel_unshuffle(x, self.config.patch)
        mean, log_variance = self.quant_conv(self.encoder(patches)).chunk(2, dim=1)
        moments = torch.cat([mean + self.encoder_shortcut(x), log_variance], dim=1)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, num_frames: int, return_dict: bool = True) -> Any:
        """Decode latents [B,C,h,w], `num_frames` of which belong together, to frames [B,3,H,W]."""
        decoded = super().decode(z, num_frames=num_frames, return_dict=False)[0]
        decoded = F.pixel_shuffle(decoded, self.config.patch) + self.decoder_shortcut(z)
        return DecoderOutput(sample=decoded) if return_dict else (decoded,)


def defocus_basis(vae: Any, photos: Tensor) -> Tensor:
    """Return what defocus does to photos [B,3,H,W] in [-1,1], as directions of unscaled latents:
    the (linear) latent of a quarter of each patch blurred by a radius, minus that of the photo; for
    each of the compact autoencoder's `defocus_radii` (R) and each quarter, [B,4R,C,h,w]."""
    linear = srgb_to_linear((photos + 1) / 2)
    weight, factor = vae.encoder_shortcut.weight, latent_factor(vae)
    quarters = _quarters(factor).to(weight)
    found = []
    for radius in vae.config.defocus_radii:
        change = 2 * linear_to_srgb(blurred(linear, radius)) - 1 - photos
        tiles = quarters.tile(1, *(side // factor for side in change.shape[-2:]))
        masked = (change[:, None] * tiles[:, None]).flatten(0, 1)
        directions = F.conv2d(masked, weight, stride=factor)
        found.append(directions.reshape(len(photos), len(quarters), *directions.shape[1:]))
    return torch.cat(found, dim=1)


def latent_factor(vae: Any) -> int:
    """Return how many pixels of a side go into one of the latent."""
    factor: int = 2 ** (len(vae.config.block_out_channels) - 1) * vae.config.get("patch", 1)
    return factor


def _quarters(patch: int) -> Tensor:
    """Return the four quarters of a patch as masks, [4,patch,patch] of 0 and 1."""
    half, single = patch // 2, torch.eye(QUARTERS).reshape(QUARTERS, 2, 2)
    return single.repeat_interleave(half, 1).repeat_interleave(half, 2)
