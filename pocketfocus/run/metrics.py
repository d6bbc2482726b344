"""PSNR and SSIM between images or stacks of one value range."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

PEAK = 2.0  # the value range of [-1, 1]
CAP_DB = 200.0  # reported for identical inputs, so that every figure is a finite JSON number


def psnr(a: Tensor, b: Tensor, peak: float = PEAK) -> float:
    """Return the peak signal-to-noise ratio in dB over all elements; at most `CAP_DB`, NaN-poisoned
    inputs give -inf. ValueError when the shapes differ."""
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {list(a.shape)} and {list(b.shape)}")
    error = torch.mean((a.double() - b.double()) ** 2).item()
    if not math.isfinite(error):
        return -math.inf
    return CAP_DB if error == 0 else min(CAP_DB, 10 * math.log10(peak**2 / error))


def ssim(a: Tensor, b: Tensor, peak: float = PEAK) -> float:
    """Return the mean structural similarity (Wang et al. 2004, 11-tap Gaussian) of images
    [B,3,H,W]."""
    value = structural_similarity_index_measure(a.float(), b.float(), data_range=peak)
    if not isinstance(value, Tensor):
        raise TypeError("torchmetrics returned more than the mean")
    return float(value)
