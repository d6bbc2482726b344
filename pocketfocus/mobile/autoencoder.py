"""AutoencoderKLTemporalDecoder rewritten, and `CompactAutoencoder` with its linear shortcuts.

Two networks, for they are two files on a phone: an encoder for the mode of the latents, and a
decoder for frames that belong together.

Legend: N photos, T frames, C latent channels, H, W photo size, h, w latent size, f = H / h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

from pocketfocus.mobile.blocks import ResBlock, SpatialResBlock
from pocketfocus.mobile.folds import fold_mode, fold_unshuffle
from pocketfocus.mobile.layers import (
    Attention,
    Downsample,
    GroupNorm,
    Upsample,
    shuffled,
    to_columns,
    to_frames,
    to_tokens,
)
from pocketfocus.mobile.source import Rewritten, Source, Tensors, build, gather, take
from pocketfocus.run.errors import UserError

GROUPS = 32  # diffusers' own; CompactAutoencoder has them in its config
EPS, TEMPORAL_EPS = 1e-6, 1e-5
DOWN_BLOCK = "DownEncoderBlock2D"


class FrameAttention(Rewritten):
    """Attention of one head among the pixels of each frame, with its norm, [T,C,h,w] -> same."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups, EPS)
        self.attention = Attention(channels, heads=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attention(to_tokens(self.norm(x)))
        return x + attended.permute(0, 2, 1).reshape(x.shape)

    def take(self, source: Source) -> Tensors:
        norm = self.norm.take(source.at("group_norm"))
        return gather({"norm": norm, "attention": self.attention.take(source)})


class Level(Rewritten):
    """Residual blocks, then another size but at the last level: [N,C,H,W] -> [N,O,H/2,W/2], of
    which `samplers` are the `downsamplers`, or [N,O,2H,2W], with `upsamplers`."""

    def __init__(self, resnets: Iterable[nn.Module], **samplers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        for name, parts in samplers.items():
            self.add_module(name, nn.ModuleList(parts))

    def forward(self, x: Tensor) -> Tensor:
        for parts in self.children():
            for part in parts.children():
                x = part(x)
        return x


class Middle(Rewritten):
    """A residual block, then attention and the other blocks if there are more, [N,C,h,w] -> same.

    diffusers' MidBlockTemporalDecoder pairs all residual blocks but the first with its one
    attention: two blocks and the attention run where there are two or more, and one block without
    attention where there is one.
    """

    def __init__(self, resnets: Sequence[nn.Module], width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets[:2])
        self.attentions = nn.ModuleList([FrameAttention(width, groups)] * (len(resnets) > 1))

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.resnets[:1], *self.attentions, *self.resnets[1:]):
            x = part(x)
        return x


class MobileEncoder(Rewritten):
    """Mode of the latents [N,C,h,w], *not* multiplied by the scaling factor, of photos [N,3,H,W] in
    [-1,1]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        unknown = set(config.down_block_types) - {DOWN_BLOCK}
        if unknown:
            raise UserError(
                f"the autoencoder's config.json names a {min(unknown)}, this rewrite knows "
                f"{DOWN_BLOCK}: take a Stable Video Diffusion autoencoder"
            )
        widths, groups = tuple(config.block_out_channels), groups_of(config)
        patch = self.patch = patch_of(config)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3 * patch, patch, patch)
        block = partial(SpatialResBlock, groups=groups, eps=EPS)
        self.down_blocks = nn.ModuleList(
            Level(resnets, downsamplers=[Downsample(width, centred=False)] * (n < len(widths)))
            for n, (resnets, width) in enumerate(levels(block, widths, config.layers_per_block), 1)
        )
        self.mid_block = Middle([block((widths[-1],) * 2) for _ in range(2)], widths[-1], groups)
        self.conv_norm_out = GroupNorm(widths[-1], groups, EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)
        self.shortcut = None
        if is_compact(config):
            factor = 2 ** (len(widths) - 1) * patch
            self.shortcut = nn.Conv2d(config.in_channels, config.latent_channels, factor, factor)

    def forward(self, photos: Tensor) -> Tensor:
        x = self.conv_in(photos)
        for level in self.down_blocks:
            x = level(x)
        x = F.silu(self.conv_norm_out(self.mid_block(x)))
        x = self.conv_out(x)
        return x if self.shortcut is None else x + self.shortcut(photos)

    def take(self, source: Source) -> Tensors:
        encoder = source.at("encoder")
        names = ("encoder.conv_out", "quant_conv")
        weights = [source[f"{name}.{kind}"] for name in names for kind in ("weight", "bias")]
        mode = dict(zip(("weight", "bias"), fold_mode(*weights), strict=True))
        parts = ("conv_in", "down_blocks", "mid_block", "conv_norm_out")
        found = {name: take(self.get_submodule(name), encoder.at(name)) for name in parts}
        if self.patch > 1:
            found["conv_in"]["weight"] = fold_unshuffle(found["conv_in"]["weight"], self.patch)
        if self.shortcut is not None:
            found["shortcut"] = take(self.shortcut, source.at("encoder_shortcut"))
        return gather({**found, "conv_out": mode})


class MobileDecoder(Rewritten):
    """Frames [T,3,H,W] from unscaled latents [T,C,h,w] that belong together."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        widths, groups = tuple(reversed(config.block_out_channels)), groups_of(config)
        patch = self.patch = patch_of(config)
        colours, made = config.out_channels, config.out_channels * patch**2
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        block = partial(ResBlock, groups=groups, eps=(EPS, TEMPORAL_EPS), switched=True)
        layers = config.layers_per_block
        middle = [block((widths[0],) * 2) for _ in range(layers)]
        self.mid_block = Middle(middle, widths[0], groups)
        self.up_blocks = nn.ModuleList(
            Level(resnets, upsamplers=[Upsample(width)] * (n < len(widths)))
            for n, (resnets, width) in enumerate(levels(block, widths, layers + 1), 1)
        )
        self.conv_norm_out = GroupNorm(widths[-1], groups, EPS)
        self.conv_out = nn.Conv2d(widths[-1], made, 3, padding=1)
        self.time_conv_out = nn.Conv2d(made, made, (3, 1), padding=(1, 0))
        self.shortcut = None
        if is_compact(config):
            factor = 2 ** (len(widths) - 1) * patch
            self.shortcut = nn.ConvTranspose2d(config.latent_channels, colours, factor, factor)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latents))
        for level in self.up_blocks:
            x = level(x)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        x = to_frames(self.time_conv_out(to_columns(x)), x.shape[2], x.shape[3])
        x = shuffled(x, self.patch) if self.patch > 1 else x
        return x if self.shortcut is None else x + self.shortcut(latents)

    def take(self, source: Source) -> Tensors:
        decoder = source.at("decoder")
        found = {
            name: take(part, decoder.at(name))
            for name, part in self.named_children()
            if name != "shortcut"
        }
        if self.shortcut is not None:
            found["shortcut"] = take(self.shortcut, source.at("decoder_shortcut"))
        return gather(found)


@dataclass(frozen=True)
class Mode:
    """A posterior of which only the mode [N,C,h,w] is known."""

    value: Tensor

    def mode(self) -> Tensor:
        return self.value


class MobileAutoencoder(nn.Module):
    """Both networks, called as AutoencoderKLTemporalDecoder is."""

    def __init__(self, config: Any, encoder: MobileEncoder, decoder: MobileDecoder) -> None:
        super().__init__()
        self.config, self.encoder, self.decoder = config, encoder, decoder

    @property
    def encoder_shortcut(self) -> nn.Conv2d | None:
        """The linear part of a compact autoencoder's encoder, for `defocus_basis`."""
        return self.encoder.shortcut

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """Posterior of photos [N,3,H,W] in [-1,1]; it has a mode only."""
        return AutoencoderKLOutput(latent_dist=Mode(self.encoder(x)))

    def decode(self, z: Tensor, num_frames: int) -> DecoderOutput:
        """Frames [T,3,H,W] from unscaled latents [T,C,h,w] that belong together; ValueError when
        `num_frames` is not T."""
        if num_frames != len(z):
            raise ValueError(f"this decoder takes one stack at a time, got {len(z)} / {num_frames}")
        return DecoderOutput(sample=self.decoder(z))


def mobile_autoencoder(config: Any, tensors: Mapping[str, Tensor]) -> MobileAutoencoder:
    """The rewritten autoencoder of a diffusers config and its tensors, which are not copied."""
    source = Source(tensors)
    encoder = build(lambda: MobileEncoder(config), lambda network: network.take(source))
    decoder = build(lambda: MobileDecoder(config), lambda network: network.take(source))
    return MobileAutoencoder(config, encoder, decoder).eval()


def levels(
    block: Callable[[tuple[int, int]], nn.Module], widths: Sequence[int], layers: int
) -> Iterator[tuple[list[nn.Module], int]]:
    """Yield the residual blocks of every level, so many each, and their width."""
    for before, width in pairwise((widths[0], *widths)):
        yield [block((width if n else before, width)) for n in range(layers)], width


def groups_of(config: Any) -> int:
    """Groups of all norms."""
    return int(config.get("norm_num_groups", GROUPS))


def patch_of(config: Any) -> int:
    """Pixels of a side that are channels of one pixel to the networks; 1: none."""
    return int(config.get("patch", 1))


def is_compact(config: Any) -> bool:
    """Whether it is the config of a `CompactAutoencoder`, which has shortcuts."""
    return "norm_num_groups" in config
