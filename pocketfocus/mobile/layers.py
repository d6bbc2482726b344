"""Layers in operators that ExecuTorch's and Core ML's CPU and NPU backends take, rank 4 at most.

No Conv3d, no native normalisation, no scaled_dot_product_attention, no mask, no expand, no nearest
upsampling: each would end a delegated graph or stop a converter.

Legend: T frames (the batch of every 2-D layer: one stack at a time), C channels, H, W, N and L any
batch and length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfocus.mobile.folds import fold_attention_scale, fold_upsample
from pocketfocus.mobile.source import Rewritten, Source, Tensors, gather, take

MOST_SCORES = 2**26  # elements of the attention scores held at once, 256 MiB in float32


def to_columns(x: Tensor) -> Tensor:
    """Frames [T,C,H,W] -> columns of time [1,C,T,H*W], on which a temporal (3,1,1) Conv3d is a
    Conv2d (3,1)."""
    frames, channels, height, width = x.shape
    return x.reshape(1, frames, channels, height * width).permute(0, 2, 1, 3)


def to_frames(columns: Tensor, height: int, width: int) -> Tensor:
    """Columns of time [1,C,T,H*W] -> frames [T,C,H,W]."""
    _, channels, frames, _ = columns.shape
    return columns.permute(0, 2, 1, 3).reshape(frames, channels, height, width)


def to_tokens(x: Tensor) -> Tensor:
    """Frames [T,C,H,W] -> tokens [T,H*W,C], contiguous: of linear layers on strided tokens
    torch.export makes products with an `expand`."""
    frames, channels, height, width = x.shape
    tokens = x.reshape(frames, channels, height * width).permute(0, 2, 1)
    return tokens.contiguous()


def shuffled(x: Tensor, patch: int) -> Tensor:
    """pixel_shuffle, [T,C*p*p,h,w] -> [T,C,h*p,w*p], in two transpositions at rank 4: columns, then
    rows."""
    frames, channels, height, width = x.shape
    images = frames * channels // patch**2
    x = x.reshape(images * patch, patch, height, width).permute(0, 2, 3, 1)
    x = x.reshape(images, patch, height, width * patch).permute(0, 2, 1, 3)
    return x.reshape(frames, channels // patch**2, height * patch, width * patch)


def standardise(x: Tensor, eps: float) -> Tensor:
    """Zero mean and unit variance over the last two dimensions, [N,M,P,Q] -> same.

    In elementary steps: XNNPACK has no normalisation, but means over the last two of four
    dimensions. What is squared is first divided by its mean magnitude (1 / s as rsqrt(s)^2, which
    XNNPACK has): squares of the autoencoder's activations exceed float16, those of small ones
    vanish in it. Equal to x / sqrt(variance + eps) but for rounding.
    """
    centred = x - x.mean((2, 3), keepdim=True)
    root = torch.rsqrt(centred.abs().mean((2, 3), keepdim=True) + eps**0.5)
    inverse = root * root
    scaled, least = centred * inverse, inverse * eps**0.5
    variance = (scaled * scaled).mean((2, 3), keepdim=True)
    return scaled * torch.rsqrt(variance + least * least)


class GroupNorm(Rewritten):
    """Group normalisation (Wu and He 2018) of [N,C,P,Q]: frames [T,C,H,W] one by one, or columns
    [1,C,T,H*W] over all frames, as nn.GroupNorm does on [1,C,T,H,W]."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        grouped = x.reshape(batch, self.groups, channels // self.groups, height * width)
        return standardise(grouped, self.eps).reshape(x.shape) * self.weight + self.bias

    def take(self, source: Source) -> Tensors:
        return {name: source[name].reshape(1, -1, 1, 1) for name in ("weight", "bias")}


class LayerNorm(Rewritten):
    """Layer normalisation (Ba et al. 2016) of tokens [N,L,C] over C."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(1, 1, channels))
        self.bias = nn.Parameter(torch.empty(1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        tokens = x.reshape(batch, length, 1, channels)
        return standardise(tokens, self.eps).reshape(x.shape) * self.weight + self.bias

    def take(self, source: Source) -> Tensors:
        return {name: source[name].reshape(1, 1, -1) for name in ("weight", "bias")}


class Residual(Rewritten):
    """norm, SiLU, convolution, twice: the branch of a residual block, [N,C,P,Q] -> [N,O,P,Q].

    Args:
        channels: in and out.
        kernel: (3, 3) for frames, (3, 1) for columns of time.
        groups: of both norms.
        eps: of both norms.
    """

    def __init__(
        self, channels: tuple[int, int], kernel: tuple[int, int], groups: int, eps: float
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.norm1 = GroupNorm(channels[0], groups, eps)
        self.conv1 = nn.Conv2d(channels[0], channels[1], kernel, padding=padding)
        self.norm2 = GroupNorm(channels[1], groups, eps)
        self.conv2 = nn.Conv2d(channels[1], channels[1], kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(x)))


class Attention(Rewritten):
    """Multi-head self-attention (Vaswani et al. 2017) of tokens, [N,L,C] -> same.

    Two batched matrix products around a softmax, over blocks of queries where all scores at once
    would take more than `MOST_SCORES` elements: rows of the softmax do not depend on each other.
    """

    def __init__(self, channels: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(channels, channels, bias=bias)
        self.to_v = nn.Linear(channels, channels, bias=bias)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        query, value = self.split(self.to_q(x)), self.split(self.to_v(x))
        key = self.split(self.to_k(x)).transpose(1, 2)
        rows = max(1, MOST_SCORES // (len(query) * length))
        blocks = torch.split(query, rows, dim=1) if rows < length else (query,)
        attended = [torch.bmm(torch.bmm(block, key).softmax(dim=-1), value) for block in blocks]
        merged = torch.cat(attended, dim=1) if len(attended) > 1 else attended[0]
        heads = merged.reshape(batch, self.heads, length, channels // self.heads)
        return self.to_out(heads.permute(0, 2, 1, 3).reshape(batch, length, channels))

    def split(self, x: Tensor) -> Tensor:
        """Heads into the batch: [N,L,C] -> [N*heads,L,C/heads]."""
        batch, length, channels = x.shape
        size = channels // self.heads
        heads = x.reshape(batch, length, self.heads, size).permute(0, 2, 1, 3)
        return heads.reshape(batch * self.heads, length, size)

    def take(self, source: Source) -> Tensors:
        size = self.to_q.in_features // self.heads
        query = take(self.to_q, source.at("to_q"))
        return gather(
            {
                "to_q": {name: fold_attention_scale(t, size) for name, t in query.items()},
                "to_k": take(self.to_k, source.at("to_k")),
                "to_v": take(self.to_v, source.at("to_v")),
                "to_out": take(self.to_out, source.at("to_out.0")),
            }
        )


class FeedForward(Rewritten):
    """Gated MLP, GEGLU (Shazeer 2020): out(value(x) * gelu(gate(x))), [N,L,C] -> same.

    Two linear layers where diffusers has one of twice the width, so that no tensor is cut in two.
    """

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        self.value = nn.Linear(channels, expansion * channels)
        self.gate = nn.Linear(channels, expansion * channels)
        self.out = nn.Linear(expansion * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.value(x) * F.gelu(self.gate(x)))

    def take(self, source: Source) -> Tensors:
        weight, bias = source["net.0.proj.weight"].chunk(2), source["net.0.proj.bias"].chunk(2)
        return gather(
            {
                "value": {"weight": weight[0], "bias": bias[0]},
                "gate": {"weight": weight[1], "bias": bias[1]},
                "out": take(self.out, source.at("net.2")),
            }
        )


class Upsample(Rewritten):
    """Twice the size in one transposed convolution, [T,C,H,W] -> [T,C,2H,2W]: see
    `fold_upsample`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def take(self, source: Source) -> Tensors:
        weight = fold_upsample(source["conv.weight"])
        return {"conv.weight": weight, "conv.bias": source["conv.bias"]}


class Downsample(Rewritten):
    """Half the size by a 3x3 convolution, [T,C,H,W] -> [T,C,H/2,W/2].

    Args:
        channels: in and out.
        centred: padded by one on all sides, as in the UNet; else right and below only, as in the
            encoder.
    """

    def __init__(self, channels: int, centred: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=int(centred))

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.padding == (0, 0):
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)
