"""MIL's operators that move values about without changing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.export.coreml.mil.registry import booleans, integers, operator


@operator("reshape")
def reshape(x: Tensor, shape: Any) -> Tensor:
    """To `shape`; 0 keeps a dimension, -1 is inferred."""
    wanted = integers(shape)
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(wanted)])


@operator("transpose")
def transpose(x: Tensor, perm: Any) -> Tensor:
    """Dimension i of the result is dimension perm[i]."""
    return x.permute(integers(perm))


@operator("expand_dims")
def expand_dims(x: Tensor, axes: Any) -> Tensor:
    """Dimensions of length 1 at `axes` of the result."""
    rank = x.ndim + len(integers(axes))
    for axis in sorted(a % rank for a in integers(axes)):
        x = x.unsqueeze(axis)
    return x


@operator("squeeze")
def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    """Without the dimensions `axes`, or without all of length 1."""
    return x.squeeze() if axes is None else x.squeeze(integers(axes))


@operator("concat")
def concat(values: Sequence[Tensor], axis: Any, interleave: Any = False) -> Tensor:
    """One after the other along `axis`, or taking turns."""
    along = int(axis)
    if not interleave:
        return torch.cat(list(values), along)
    along %= values[0].ndim
    return torch.stack(list(values), along + 1).flatten(along, along + 1)


@operator("stack")
def stack(values: Sequence[Tensor], axis: Any) -> Tensor:
    """Along a new dimension."""
    return torch.stack(list(values), int(axis))


@operator("split")
def split(x: Tensor, axis: Any, num_splits: Any = None, split_sizes: Any = None) -> list[Tensor]:
    """Parts of equal length, or of `split_sizes`."""
    along = int(axis)
    if split_sizes is not None:
        return list(torch.split(x, integers(split_sizes), along))
    return list(torch.split(x, x.shape[along] // int(num_splits), along))


@operator("slice_by_index")
def slice_by_index(
    x: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    """Python's slices, a dimension each; masked ends are open, squeezed dimensions go."""
    first, last = integers(begin), integers(end)
    steps = [1] * x.ndim if stride is None else integers(stride)
    open_first, open_last = booleans(begin_mask, x.ndim), booleans(end_mask, x.ndim)
    gone = booleans(squeeze_mask, x.ndim)
    for axis in reversed(range(x.ndim)):
        if gone[axis]:
            x = x.select(axis, first[axis])
            continue
        taken = slice(
            None if open_first[axis] else first[axis],
            None if open_last[axis] else last[axis],
            steps[axis],
        )
        found = torch.tensor(range(x.shape[axis])[taken], dtype=torch.int64)
        x = x.index_select(axis, found)
    return x


@operator("slice_by_size")
def slice_by_size(x: Tensor, begin: Any, size: Any) -> Tensor:
    """`size` values from `begin` on, a dimension each; -1 is all that are left."""
    for axis, (first, length) in enumerate(zip(integers(begin), integers(size), strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if length == -1 else length)
    return x


@operator("crop")
def crop(x: Tensor, crop_height: Any, crop_width: Any) -> Tensor:
    """Rows and columns cut off before and after."""
    (top, bottom), (left, right) = integers(crop_height), integers(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@operator("gather")
def gather(x: Tensor, indices: Tensor, axis: Any, **_: Any) -> Tensor:
    """The slices `indices` of one dimension."""
    along, where = int(axis) % x.ndim, torch.as_tensor(indices).long()
    taken = x.index_select(along, where.reshape(-1) % x.shape[along])
    return taken.reshape([*x.shape[:along], *where.shape, *x.shape[along + 1 :]])


@operator("tile")
def tile(x: Tensor, reps: Any) -> Tensor:
    """Repeated `reps` times, a dimension each."""
    return x.repeat(integers(reps))


@operator("reverse")
def reverse(x: Tensor, axes: Any = None) -> Tensor:
    """Backwards along `axes`, or along all."""
    return x.flip(list(range(x.ndim)) if axes is None else integers(axes))


@operator("fill")
def fill(shape: Any, value: Any) -> Tensor:
    """One value everywhere."""
    return torch.as_tensor(value).expand(integers(shape)).clone()


@operator("pad")
def pad(x: Tensor, pad: Any, mode: str = "constant", constant_val: Any = 0.0) -> Tensor:
    """Values before and after each of the last dimensions: constant, reflect or replicate."""
    amounts = integers(pad)
    pairs = [amounts[i : i + 2] for i in range(0, len(amounts), 2)]
    if mode == "constant":
        flat = [n for pair in reversed(pairs) for n in pair]
        return F.pad(x, flat, value=float(constant_val))
    while pairs and pairs[0] == [0, 0]:
        pairs = pairs[1:]
    flat = [n for pair in reversed(pairs) for n in pair]
    kept = x.shape[: x.ndim - len(pairs)]
    y = F.pad(x.reshape(1, -1, *x.shape[len(kept) :]), flat, mode=mode)
    return y.reshape([*kept, *y.shape[2:]])


@operator("pixel_shuffle")
def pixel_shuffle(x: Tensor, upscale_factor: Any) -> Tensor:
    """Channels into space, as PyTorch does."""
    return F.pixel_shuffle(x, int(upscale_factor))


@operator("pixel_unshuffle")
def pixel_unshuffle(x: Tensor, downscale_factor: Any) -> Tensor:
    """Space into channels, as PyTorch does."""
    return F.pixel_unshuffle(x, int(downscale_factor))
