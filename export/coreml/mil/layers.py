"""MIL's convolutions, matrix products, norms, pools, resampling and attention.

Legend: B batch, C channels, K kernel sizes, S spatial sizes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.export.coreml.mil.registry import integers, operator

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAXIMUM = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def spatial(values: Any, rank: int, default: int) -> list[int]:
    """A constant with one value a spatial dimension."""
    return [default] * rank if values is None else integers(values)


def amounts(
    kind: str, pad: Any, sizes: list[int], kernel: list[int], strides: list[int]
) -> list[tuple[int, int]]:
    """Padding before and after each spatial dimension; `kernel` counts its dilation."""
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        found = integers(pad)
        return [(found[2 * i], found[2 * i + 1]) for i in range(len(sizes))]
    if kind not in ("same", "same_lower"):
        raise ValueError(f"pad_type {kind}")
    pairs = []
    for size, k, stride in zip(sizes, kernel, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + k - size, 0)
        less, more = total // 2, total - total // 2
        pairs.append((more, less) if kind == "same_lower" else (less, more))
    return pairs


def padded(x: Tensor, pairs: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Values around the spatial dimensions; negative amounts crop."""
    flat = [n for pair in reversed(pairs) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


@operator("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: Any = 1,
) -> Tensor:
    """X [B, C_in, *S], weight [C_out, C_in / groups, *K]."""
    rank = x.ndim - 2
    stride, dilation = spatial(strides, rank, 1), spatial(dilations, rank, 1)
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    pairs = amounts(pad_type, pad, list(x.shape[2:]), kernel, stride)
    return CONVOLUTIONS[rank](
        padded(x, pairs), weight, bias, stride=stride, dilation=dilation, groups=int(groups)
    )


@operator("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: Any = 1,
    output_shape: Any = None,
) -> Tensor:
    """X [B, C_in, *S], weight [C_in, C_out / groups, *K]; `pad` is cropped from the result."""
    if pad_type not in ("valid", "custom"):
        raise ValueError(f"pad_type {pad_type}")
    rank = x.ndim - 2
    stride, dilation = spatial(strides, rank, 1), spatial(dilations, rank, 1)
    whole = TRANSPOSED[rank](x, weight, None, stride=stride, dilation=dilation, groups=int(groups))
    crops = amounts(pad_type, pad, list(x.shape[2:]), [], [])
    if output_shape is not None:  # what the crops leave over is asked for at the far end
        wanted = integers(output_shape)[-rank:]
        sizes = zip(whole.shape[2:], wanted, crops, strict=True)
        crops = [(before, size - before - want) for size, want, (before, _) in sizes]
    result = padded(whole, [(-before, -after) for before, after in crops])
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


@operator("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X [..., C_in], weight [C_out, C_in]."""
    return F.linear(x, weight, bias)


@operator("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: Any = False, transpose_y: Any = False) -> Tensor:
    """The matrix product of the last two dimensions, either transposed first."""
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


@operator("einsum")
def einsum(values: Any, equation: str) -> Tensor:
    """By its equation."""
    return torch.einsum(equation, *values)


@operator("scaled_dot_product_attention")
def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None) -> Tensor:
    """Softmax(query key^T / sqrt(E) + mask) value."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


@operator("batch_norm")
def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, epsilon: Any, gamma: Any = None, beta: Any = None
) -> Tensor:
    """By given statistics, a channel each."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


@operator("instance_norm")
def instance_norm(x: Tensor, epsilon: Any, gamma: Any = None, beta: Any = None) -> Tensor:
    """By each image's and channel's own statistics."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=float(epsilon))


@operator("layer_norm")
def layer_norm(
    x: Tensor, epsilon: Any, axes: Any = None, gamma: Any = None, beta: Any = None
) -> Tensor:
    """Over `axes` (None for all), then gamma and beta, laid along these axes."""
    over = sorted(a % x.ndim for a in (range(x.ndim) if axes is None else integers(axes)))
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + float(epsilon))
    shape = [n if i in over else 1 for i, n in enumerate(x.shape)]
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@operator("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    exclude_padding_from_average: Any = False,
    ceil_mode: Any = False,
) -> Tensor:
    """The mean of each window; padding counts as zeros, or not at all."""
    rank, kernel, stride, pairs = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    total = AVERAGE[rank](padded(x, pairs), kernel, stride)
    if not exclude_padding_from_average:
        return total
    return total / AVERAGE[rank](padded(torch.ones_like(x), pairs), kernel, stride)


@operator("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    ceil_mode: Any = False,
) -> Tensor:
    """The largest value of each window."""
    rank, kernel, stride, pairs = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return MAXIMUM[rank](padded(x, pairs, float("-inf")), kernel, stride)


def _windows(
    x: Tensor, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any, ceil_mode: Any
) -> tuple[int, list[int], list[int], list[tuple[int, int]]]:
    if ceil_mode:
        raise ValueError("ceil_mode")
    rank, kernel = x.ndim - 2, integers(kernel_sizes)
    stride = spatial(strides, rank, 1)
    return rank, kernel, stride, amounts(pad_type, pad, list(x.shape[2:]), kernel, stride)


@operator("upsample_nearest_neighbor")
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1
) -> Tensor:
    """Every pixel repeated; whole factors only."""
    factors = [float(scale_factor_height), float(scale_factor_width)]
    if not all(f.is_integer() for f in factors):
        raise ValueError(f"scale factors {factors}")
    height, width = map(int, factors)
    return x.repeat_interleave(height, -2).repeat_interleave(width, -1)


@operator("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Any = 1,
    scale_factor_width: Any = 1,
    align_corners: Any = True,
    half_pixel_centers: Any = None,
) -> Tensor:
    """Between pixels, linearly; corners aligned, or half-pixel centres."""
    aligned = bool(align_corners)
    if half_pixel_centers is not None and bool(half_pixel_centers) == aligned:
        raise ValueError(f"align_corners and half_pixel_centers are both {aligned}")
    factors = (float(scale_factor_height), float(scale_factor_width))
    return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=aligned)


@operator("resize_bilinear")
def resize_bilinear(
    x: Tensor,
    target_size_height: Any = 1,
    target_size_width: Any = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """To a size; corners aligned, or half-pixel centres."""
    if sampling_mode not in ("STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS"):
        raise ValueError(f"sampling_mode {sampling_mode}")
    size = (int(target_size_height), int(target_size_width))
    aligned = sampling_mode == "STRICT_ALIGN_CORNERS"
    return F.interpolate(x, size, mode="bilinear", align_corners=aligned)
