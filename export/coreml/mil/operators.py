"""What MIL's operators mean, those that written files contain, by the names MIL gives them.

Each takes an operator's inputs by MIL's names, floats as float32, and gives its output. Legend: B
batch, C channels, K kernel sizes, S spatial sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Operator = Callable[..., Tensor]
OPERATORS: dict[str, Operator] = {
    "abs": lambda x: torch.abs(x),
    "relu": lambda x: torch.relu(x),
    "relu6": lambda x: F.relu6(x),
    "silu": lambda x: F.silu(x),
    "add": lambda x, y: torch.as_tensor(x) + torch.as_tensor(y),  # either may be a number
    "sub": lambda x, y: torch.as_tensor(x) - torch.as_tensor(y),
    "mul": lambda x, y: torch.as_tensor(x) * torch.as_tensor(y),
    "cast": lambda x, dtype: x,  # the program rounds every output to the type that it declares
    "rsqrt": lambda x, epsilon: torch.rsqrt(x + epsilon),
    "clip": lambda x, alpha, beta: torch.clamp(x, float(alpha), float(beta)),
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),  # [..., C_in], [C_out, C_in]
    "softmax": lambda x, axis: torch.softmax(x, int(axis)),
    "transpose": lambda x, perm: x.permute(integers(perm)),
}
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def integers(values: Any) -> list[int]:
    """A constant as plain integers, whatever its rank."""
    return [int(v) for v in torch.as_tensor(values).reshape(-1)]


def booleans(values: Any, count: int) -> list[bool]:
    """A mask as plain booleans; None is a mask of `count` times False."""
    return [False] * count if values is None else list(map(bool, integers(values)))


def reduce_mean(x: Tensor, axes: Any = None, keep_dims: Any = False) -> Tensor:
    """The mean over `axes`, or over all."""
    over = list(range(x.ndim)) if axes is None else integers(axes)
    return torch.mean(x, over, keepdim=bool(keep_dims))


def gelu(x: Tensor, mode: str) -> Tensor:
    """The Gaussian error linear unit, exact or by tanh."""
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise ValueError(f"mode {mode}")
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Any = None, axis: Any = None
) -> Tensor:
    """clip(round(input / scale) + zero_point), halves to even, to int8 or uint8."""
    kind = {"int8": torch.int8, "uint8": torch.uint8}[output_dtype]
    scale, zero = _along(scale, input, axis), _along(zero_point, input, axis)
    limits = torch.iinfo(kind)
    return torch.clamp(torch.round(input / scale) + zero, limits.min, limits.max).to(kind)


def dequantize(input: Tensor, scale: Tensor, zero_point: Any = None, axis: Any = None) -> Tensor:
    """Scale (input - zero_point)."""
    return _along(scale, input, axis) * (input.float() - _along(zero_point, input, axis))


def _along(values: Any, x: Tensor, axis: Any) -> Tensor:
    """A scalar, or a vector laid along `axis` of x; None is 0. Integers become float32."""
    found = torch.as_tensor(0 if values is None else values).float()
    if found.ndim == 0:
        return found
    shape = [1] * x.ndim
    shape[int(axis)] = -1
    return found.reshape(shape)


@dataclass(frozen=True)
class Steps:
    """How a kernel goes over its input, in MIL's own parameters."""

    strides: Any = None
    dilations: Any = None
    groups: Any = 1
    pad_type: str = "valid"
    pad: Any = None

    def arguments(self, rank: int) -> dict[str, Any]:
        """What PyTorch takes but for padding."""
        ones = [1] * rank
        stride = ones if self.strides is None else integers(self.strides)
        dilation = ones if self.dilations is None else integers(self.dilations)
        return {"stride": stride, "dilation": dilation, "groups": int(self.groups)}

    def padding(self, rank: int) -> list[tuple[int, int]]:
        """Values before and after each spatial dimension."""
        if self.pad_type == "valid":
            return [(0, 0)] * rank
        if self.pad_type != "custom":
            raise ValueError(f"pad_type {self.pad_type}")
        found = integers(self.pad)
        return list(zip(found[::2], found[1::2], strict=True))


def padded(x: Tensor, pairs: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Values around the last dimensions; negative amounts crop."""
    flat = [n for pair in reversed(pairs) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **steps: Any) -> Tensor:
    """X [B, C_in, *S], weight [C_out, C_in / groups, *K]."""
    how, rank = Steps(**steps), x.ndim - 2
    given = padded(x, how.padding(rank))
    return CONVOLUTIONS[rank](given, weight, bias, **how.arguments(rank))


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    output_shape: Any = None,
    **steps: Any,
) -> Tensor:
    """X [B, C_in, *S], weight [C_in, C_out / groups, *K]; `pad` is cropped from the result."""
    how, rank = Steps(**steps), x.ndim - 2
    whole = TRANSPOSED[rank](x, weight, None, **how.arguments(rank))
    crops = how.padding(rank)
    if output_shape is not None:  # what the crops leave over goes at the far end
        sizes = zip(whole.shape[2:], integers(output_shape)[-rank:], crops, strict=True)
        crops = [(before, size - before - wanted) for size, wanted, (before, _) in sizes]
    result = padded(whole, [(-before, -after) for before, after in crops])
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def matmul(x: Tensor, y: Tensor, transpose_x: Any = False, transpose_y: Any = False) -> Tensor:
    """The matrix product of the last two dimensions, either transposed first."""
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, epsilon: Any, gamma: Any = None, beta: Any = None
) -> Tensor:
    """Normalized per-channel by given statistics."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


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


def reshape(x: Tensor, shape: Any) -> Tensor:
    """To `shape`; 0 keeps a dimension, -1 is inferred."""
    wanted = integers(shape)
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(wanted)])


def expand_dims(x: Tensor, axes: Any) -> Tensor:
    """Dimensions of length 1 at `axes` of the result."""
    rank = x.ndim + len(integers(axes))
    for axis in sorted(a % rank for a in integers(axes)):
        x = x.unsqueeze(axis)
    return x


def concat(values: Sequence[Tensor], axis: Any, interleave: Any = False) -> Tensor:
    """One after the other along `axis`."""
    if interleave:
        raise ValueError("interleave")
    return torch.cat(list(values), int(axis))


def slice_by_index(x: Tensor, begin: Any, end: Any, stride: Any = None, **masks: Any) -> Tensor:
    """Python's slices, a dimension each; masked ends are open, squeezed dimensions go."""
    first, last = integers(begin), integers(end)
    steps = [1] * x.ndim if stride is None else integers(stride)
    open_first, open_last, gone = (
        booleans(masks.get(f"{name}_mask"), x.ndim) for name in ("begin", "end", "squeeze")
    )
    for axis in reversed(range(x.ndim)):
        if gone[axis]:
            x = x.select(axis, first[axis])
            continue
        wanted = slice(
            None if open_first[axis] else first[axis],
            None if open_last[axis] else last[axis],
            steps[axis],
        )
        if steps[axis] > 0:
            x = x[(slice(None),) * axis + (wanted,)]
        else:  # which PyTorch's own slices cannot be
            x = x.index_select(axis, torch.tensor(range(x.shape[axis])[wanted], dtype=torch.int64))
    return x


def pad(x: Tensor, pad: Any, mode: str = "constant", constant_val: Any = 0.0) -> Tensor:
    """One value before and after each of the last dimensions."""
    if mode != "constant":
        raise ValueError(f"mode {mode}")
    amounts = integers(pad)
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    return padded(x, pairs, float(constant_val))


OPERATORS |= {
    each.__name__: each
    for each in (
        *(reduce_mean, gelu, quantize, dequantize, conv, conv_transpose, matmul, batch_norm),
        *(upsample_bilinear, reshape, expand_dims, concat, slice_by_index, pad),
    )
}
