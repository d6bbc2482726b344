"""Where a focal stack is sharp: a focus measure, the map of best focus, and the all-in-focus image.

Legend: T frames, H, W. Stacks are sRGB in [-1, 1]. Radii are in pixels: a radius r is a window of
2r + 1. Two papers: the sum-modified Laplacian of Nayar and Nakagawa, "Shape from Focus" (PAMI 1994,
eq. 7), and the fusion of Li, Kang and Hu, "Image Fusion with Guided Filtering" (TIP 2013).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SCALES = (1, 2, 4, 8, 16)  # windows of the focus measure; a plain area takes the widest one's word
_LUMA = (0.299, 0.587, 0.114)
_DETAIL = (0.02, 1e-6)  # guided filter of the detail layer: radius / side, epsilon
_BASE = (0.08, 0.3)  # of the base layer
_FLAT = 1e-12


def luma(stack: Tensor) -> Tensor:
    """Turn [T, 3, H, W] in [-1, 1] into Rec. 601 luma [T, 1, H, W] in [0, 1]."""
    weights = torch.tensor(_LUMA, dtype=stack.dtype).view(1, 3, 1, 1)
    return ((stack * weights).sum(1, keepdim=True) + 1) / 2


def box(images: Tensor, radius: int) -> Tensor:
    """Average over the window of `radius`, its part outside the image left out: [T, C, H, W].

    Shifted images added up are the very numbers of two one-sided `avg_pool2d`, in a quarter of the
    time.
    """
    for axis in (-2, -1):
        side = images.shape[axis]
        around = (radius, radius, 0, 0) if axis == -1 else (0, 0, radius, radius)
        padded, total = F.pad(images, around), torch.zeros_like(images)
        for start in range(2 * radius + 1):
            total = total.add_(padded.narrow(axis, start, side))
        at = torch.arange(side, device=images.device)
        inside = (at + radius).clamp(max=side - 1) - (at - radius).clamp(min=0) + 1
        images = total / (inside if axis == -1 else inside[:, None])
    return images


def median(image: Tensor, radius: int) -> Tensor:
    """Take the median over the window of `radius`, edges repeated: [H, W]."""
    padded = F.pad(image[None, None], (radius,) * 4, mode="replicate")
    windows = F.unfold(padded, 2 * radius + 1)[0]
    return windows.median(0).values.reshape(image.shape)


def guided(images: Tensor, guide: Tensor, radius: int, epsilon: float) -> Tensor:
    """Smooth `images` but not over the edges of `guide` (He, Sun and Tang 2013, eqs. 5-8).

    Both [T, 1, H, W]; `epsilon` is the variance of `guide` below which an area counts as plain.
    """
    mean_guide, mean = box(guide, radius), box(images, radius)
    variance = box(guide * guide, radius) - mean_guide**2
    slope = (box(guide * images, radius) - mean_guide * mean) / (variance + epsilon)
    return box(slope, radius) * guide + box(mean - slope * mean_guide, radius)


def sharpness(stack: Tensor) -> Tensor:
    """Measure the focus ≥ 0 of each pixel in each frame: [T, 3, H, W] -> [T, H, W].

    The squared modified Laplacian |2I - I_left - I_right| + |2I - I_up - I_down|, averaged over
    windows of several sizes. Wide windows weigh little, so they decide only where nothing is near.
    """
    image = F.pad(luma(stack.float()), (1, 1, 1, 1), mode="replicate")
    centre = 2 * image[..., 1:-1, 1:-1]
    across = (centre - image[..., 1:-1, :-2] - image[..., 1:-1, 2:]).abs()
    down = (centre - image[..., :-2, 1:-1] - image[..., 2:, 1:-1]).abs()
    energy = (across + down) ** 2
    return torch.stack([box(energy, r) / r for r in _SCALES]).sum(0)[:, 0]


def best_focus(stack: Tensor) -> Tensor:
    """Return the frame, 0..T-1 with fractions, in which each pixel is sharpest: [H, W].

    The peak of the parabola through the sharpest frame's measure and its two neighbours', as in
    shape from focus. Plain images, all frames equal, get frame 0.
    """
    measure = sharpness(stack)
    frames = len(measure)
    peak = measure.argmax(0)
    logs = (measure + _FLAT).log()
    before, at, after = (
        logs.gather(0, (peak + step).clamp(0, frames - 1)[None])[0] for step in (-1, 0, 1)
    )
    curve = (before - 2 * at + after).clamp(max=-_FLAT)
    inside = (peak > 0) & (peak < frames - 1)
    offset = torch.where(inside, 0.5 * (before - after) / curve, 0.0)
    return median(peak + offset.clamp(-0.5, 0.5), 2)


def focus_grid(position: Tensor, longest: int = 96) -> Tensor:
    """Return whole best-focus frames on a coarse grid, at most `longest` cells a side.

    [H, W] -> int64 [rows, columns]: the median of the pixels nearest to each cell's centre.
    """
    H, W = position.shape
    scale = min(1.0, longest / max(H, W))
    rows, columns = max(1, round(H * scale)), max(1, round(W * scale))
    pooled = F.interpolate(position[None, None], (3 * rows, 3 * columns), mode="nearest-exact")[0]
    cells = F.unfold(pooled[None], 3, stride=3)[0]
    return cells.median(0).values.round().long().reshape(rows, columns)


def all_in_focus(stack: Tensor) -> Tensor:
    """Take every pixel from the frames in which it is sharp: [T, 3, H, W] -> [3, H, W] in [-1, 1].

    Guided-filter fusion: each frame is a smooth base and a detail layer (eqs. 6, 7); the map of
    where it is sharpest, filtered under the frame's own luma, is its weight, wide and soft for the
    base, narrow for the detail (eqs. 9-12).
    """
    stack = stack.float()
    guide, side = luma(stack), min(stack.shape[-2:])
    chosen = F.one_hot(sharpness(stack).argmax(0), len(stack)).permute(2, 0, 1)[:, None].float()
    wide = max(1, round(_BASE[0] * side))
    base = box(stack, wide)
    fused = torch.zeros_like(stack[0])
    for layer, (share, epsilon) in ((base, _BASE), (stack - base, _DETAIL)):
        weight = guided(chosen, guide, max(1, round(share * side)), epsilon).clamp(0, 1)
        fused += (layer * weight / (weight.sum(0) + _FLAT)).sum(0)
    return fused.clamp(-1, 1)
