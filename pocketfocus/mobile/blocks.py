"""The blocks of the UNet and of the temporal decoder: residual in space and time, transformers.

Stable Video Diffusion (Blattmann et al., arXiv 2311.15127), which adds temporal layers as Align
your Latents does (arXiv 2304.08818). Time and CLIP embeddings are biases here, see conditioning.py.

Legend: T frames, C channels in, O out, H, W.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketfocus.mobile.folds import fold_blend, fold_frame_positions, fold_residual_blend
from pocketfocus.mobile.layers import (
    Attention,
    FeedForward,
    GroupNorm,
    LayerNorm,
    Residual,
    to_columns,
    to_frames,
    to_tokens,
)
from pocketfocus.mobile.source import Rewritten, Source, Tensors, gather, take

UNET_GROUPS = 32  # diffusers fixes it
POSITION = "time_pos_embed.linear_"


class SpatialResBlock(Rewritten):
    """ResnetBlock2D of the encoder, [N,C,H,W] -> [N,O,H,W]."""

    def __init__(self, channels: tuple[int, int], groups: int, eps: float) -> None:
        super().__init__()
        self.spatial = Residual(channels, (3, 3), groups, eps)
        self.shortcut = nn.Conv2d(*channels, 1) if channels[0] != channels[1] else None

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.shortcut is None else self.shortcut(x)
        return kept + self.spatial(x)

    def take(self, source: Source) -> Tensors:
        found = {"spatial": take(self.spatial, source)}
        if self.shortcut is not None:
            found["shortcut"] = take(self.shortcut, source.at("conv_shortcut"))
        return gather(found)


class ResBlock(SpatialResBlock):
    """SpatioTemporalResBlock: one residual block in space and one in time, [T,C,H,W] -> [T,O,H,W].

    Args:
        channels: in and out.
        groups: of the norms.
        eps: of the spatial and of the temporal norms.
        switched: the mix factor is the temporal share, as in the decoder.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        groups: int,
        eps: tuple[float, float],
        switched: bool = False,
    ) -> None:
        super().__init__(channels, groups, eps[0])
        self.switched = switched
        self.temporal = Residual((channels[1], channels[1]), (3, 1), groups, eps[1])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + to_frames(self.temporal(to_columns(x)), x.shape[2], x.shape[3])

    def take(self, source: Source) -> Tensors:
        temporal = take(self.temporal, source.at("temporal_res_block"))
        share = fold_blend(source["time_mixer.mix_factor"], self.switched)
        last = ("conv2.weight", "conv2.bias")
        scaled = fold_residual_blend(temporal[last[0]], temporal[last[1]], share)
        temporal.update(zip(last, scaled, strict=True))
        return super().take(source.at("spatial_res_block")) | gather({"temporal": temporal})


class SpatialTransformer(Rewritten):
    """BasicTransformerBlock: attention within each frame, tokens [T,H*W,C] -> same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm3 = LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class TemporalTransformer(SpatialTransformer):
    """TemporalBasicTransformerBlock: attention along time, tokens [H*W,T,C] -> same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        self.norm_in = LayerNorm(channels)
        self.ff_in = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.ff_in(self.norm_in(x)))


class Transformer(Rewritten):
    """TransformerSpatioTemporalModel, [T,C,H,W] -> same: pairs of a spatial and a temporal block,
    blended.

    Args:
        channels: C.
        heads: of all attentions.
        layers: number of pairs.
        frames: T, for which the frame positions are constants.
    """

    positions: Tensor
    share: Tensor

    def __init__(self, channels: int, heads: int, layers: int, frames: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, UNET_GROUPS, 1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            SpatialTransformer(channels, heads) for _ in range(layers)
        )
        self.temporal_transformer_blocks = nn.ModuleList(
            TemporalTransformer(channels, heads) for _ in range(layers)
        )
        self.proj_out = nn.Linear(channels, channels)
        self.register_buffer("positions", torch.empty(1, frames, channels))
        self.register_buffer("share", torch.empty(1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        frames, channels, height, width = x.shape
        tokens = self.proj_in(to_tokens(self.norm(x)))
        for spatial, temporal in zip(
            self.transformer_blocks, self.temporal_transformer_blocks, strict=True
        ):
            tokens = spatial(tokens)
            columns = tokens.permute(1, 0, 2).contiguous()
            change = temporal(columns + self.positions) - columns
            tokens = (columns + self.share * change).permute(1, 0, 2).contiguous()
        tokens = self.proj_out(tokens).reshape(frames, height, width, channels)
        return x + tokens.permute(0, 3, 1, 2)

    def take(self, source: Source) -> Tensors:
        mlp = [source[f"{POSITION}{n}.{kind}"] for n in (1, 2) for kind in ("weight", "bias")]
        frames, channels = self.positions.shape[1:]
        return {
            **super().take(source),
            "positions": fold_frame_positions(frames, *mlp).reshape(1, frames, channels),
            "share": fold_blend(source["time_mixer.mix_factor"]).reshape(1, 1, 1),
        }
