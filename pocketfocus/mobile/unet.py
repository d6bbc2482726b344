"""UNetSpatioTemporalConditionModel rewritten: the network of one denoising step of one stack.

Its time and CLIP embeddings are in its biases (see conditioning.py), so it takes one tensor.

Legend: T frames, I input channels (noisy latents and condition), C latent channels, h, w latent
size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfocus.mobile.blocks import UNET_GROUPS, ResBlock, Transformer
from pocketfocus.mobile.layers import Downsample, GroupNorm, Upsample
from pocketfocus.mobile.source import Rewritten, Source, build
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError

# Kind of block -> whether it has transformers, and the epsilon of its norms. diffusers hands
# DownBlock another epsilon than the rest, and its own argument for it to none of them.
DOWN = {"DownBlockSpatioTemporal": (False, 1e-5), "CrossAttnDownBlockSpatioTemporal": (True, 1e-6)}
UP = {"UpBlockSpatioTemporal": (False, 1e-6), "CrossAttnUpBlockSpatioTemporal": (True, 1e-6)}
MIDDLE_EPS = OUT_EPS = 1e-5


class Level(Rewritten):
    """What a down, middle or up block does at one resolution.

    Args:
        channels: in and out of each residual block.
        eps: of the residual blocks' norms.
        transformers: one after each of the residual blocks of these depths; none for ().
        heads: of their attentions.
        frames: T.
    """

    def __init__(
        self,
        channels: Sequence[tuple[int, int]],
        eps: float,
        transformers: Sequence[int],
        heads: int,
        frames: int,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(pair, UNET_GROUPS, (eps, eps)) for pair in channels)
        self.attentions = nn.ModuleList(
            Transformer(channels[0][1], heads, depth, frames) for depth in transformers
        )

    def step(self, index: int, x: Tensor) -> Tensor:
        """Residual block and transformer number `index`, [T,C,h,w] -> [T,O,h,w]."""
        x = self.resnets[index](x)
        return self.attentions[index](x) if len(self.attentions) else x


class DownLevel(Level):
    """Gives what the up level takes beside its result: [T,C,h,w] -> list of [T,O,h,w], the last
    one smaller where there is a downsampler, which has `width` channels."""

    def __init__(self, width: int, downsample: bool, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.downsamplers = nn.ModuleList([Downsample(width, centred=True)] * downsample)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for index in range(len(self.resnets)):
            x = self.step(index, x)
            outputs.append(x)
        for downsampler in self.downsamplers:
            outputs.append(downsampler(x))
        return outputs


class MiddleLevel(Level):
    """Residual block, transformer, residual block, [T,C,h,w] -> same."""

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.step(0, x))


class UpLevel(Level):
    """[T,C,h,w] and a tensor from the way down for each residual block -> [T,O,2h,2w]; takes those
    off the end of `skips`."""

    def __init__(self, upsample: bool, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.upsamplers = nn.ModuleList([Upsample(arguments[0][-1][1])] * upsample)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        for index in range(len(self.resnets)):
            x = self.step(index, torch.cat([x, skips.pop()], dim=1))
        for upsampler in self.upsamplers:
            x = upsampler(x)
        return x


class MobileUNet(Rewritten):
    """v-prediction [T,C,h,w] from scaled noisy latents and their condition [T,I,h,w].

    The same function as the diffusers module with the biases of a step and a photo (see
    `Conditioning`); without them, that of no step at all. h and w are multiples of 2^(levels - 1).
    """

    def __init__(self, config: Any, frames: int = FRAMES) -> None:
        super().__init__()
        self.config, self.frames = config, frames
        widths = tuple(config.block_out_channels)
        down = [kind_of(name, DOWN) for name in config.down_block_types]
        up = [kind_of(name, UP) for name in config.up_block_types]
        layers = for_each(config.layers_per_block, len(widths))
        depths = for_each(config.transformer_layers_per_block, len(widths))
        heads = for_each(config.num_attention_heads, len(widths))
        last = len(widths) - 1

        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        before = (widths[0], *widths)
        for n, (attentive, eps) in enumerate(down):
            pairs = list(pairwise((before[n], *[widths[n]] * layers[n])))
            found = for_each(depths[n], layers[n]) if attentive else ()
            level = DownLevel(widths[n], n < last, pairs, eps, found, heads[n], frames)
            self.down_blocks.append(level)
        depth = for_each(depths[-1], 1)
        middle = [(widths[-1], widths[-1])] * 2
        self.mid_block = MiddleLevel(middle, MIDDLE_EPS, depth, heads[-1], frames)
        self.up_blocks = nn.ModuleList()
        for n, (attentive, eps) in zip(range(last, -1, -1), up, strict=True):
            # diffusers' own rule: the last skip has the width of the level above
            skips = [widths[n]] * layers[n] + [widths[max(n - 1, 0)]]
            inputs = [widths[min(n + 1, last)]] + [widths[n]] * layers[n]
            pairs = [(a + b, widths[n]) for a, b in zip(inputs, skips, strict=True)]
            found = for_each(depths[n], layers[n] + 1) if attentive else ()
            self.up_blocks.append(UpLevel(n > 0, pairs, eps, found, heads[n], frames))
        self.conv_norm_out = GroupNorm(widths[0], UNET_GROUPS, OUT_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, (self.frames, self.config.in_channels), 2 ** (len(self.down_blocks) - 1))
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            skips += level(x)
            x = skips[-1]
        x = self.mid_block(x)
        for level in self.up_blocks:
            x = level(x, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def mobile_unet(config: Any, tensors: Mapping[str, Tensor], frames: int = FRAMES) -> MobileUNet:
    """The rewritten UNet of a diffusers config and its tensors, which are not copied."""
    return build(lambda: MobileUNet(config, frames), lambda unet: unet.take(Source(tensors)))


def kind_of(name: str, kinds: Mapping[str, tuple[bool, float]]) -> tuple[bool, float]:
    """Traits of a block by the name of its class; UserError for one SVD has not."""
    if name not in kinds:
        raise UserError(
            f"the UNet's config.json names a {name}, this rewrite knows {', '.join(kinds)}: take a "
            "Stable Video Diffusion UNet"
        )
    return kinds[name]


def for_each(value: Any, count: int) -> tuple[Any, ...]:
    """A config's value for each level, or for each block of one, where it may have one for all."""
    return tuple(value)[:count] if isinstance(value, list | tuple) else (value,) * count


def check_input(x: Tensor, leading: tuple[int, int], factor: int) -> None:
    """ValueError unless x is [frames, channels, h, w] with h and w in multiples of `factor`."""
    if tuple(x.shape[:2]) != leading or x.ndim != 4 or x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            f"this UNet takes [{leading[0]}, {leading[1]}, h, w] with h and w in multiples of "
            f"{factor}, got {list(x.shape)}"
        )
