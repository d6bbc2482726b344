"""How near images or stacks of one value range are: PSNR, SSIM, and detail that was restored."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

PEAK = 2.0  # the value range of [-1, 1]
CAP_DB = 200.0  # reported for identical inputs, so that every figure is a finite JSON number
FINE, AROUND = 5, 15  # pixels: detail is what a mean over FINE² takes away, compared over AROUND²
SHARPER = 1.5  # times the photo's detail: a place is sharper in the truth
SMALLEST_SHARE = 0.005  # of an image's places, below which it counts as none
QUIET = 2 / 255  # detail below this is noise in the photo


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
    """Return the mean structural similarity (Wang et al. 2004, 11-tap Gaussian) of images [B,3,H,W]
    of `peak` around 0; of values from 0 up, as its term of luminance needs and others report it."""
    above = (a.float() + peak / 2, b.float() + peak / 2)
    value = structural_similarity_index_measure(*above, data_range=peak)
    if not isinstance(value, Tensor):
        raise TypeError("torchmetrics returned more than the mean")
    return float(value)


def detail(images: Tensor) -> Tensor:
    """Return what a mean over `FINE` x `FINE` pixels takes away, of images [B,3,H,W]."""
    return images - _mean(images, FINE)


def sharper_places(photo: Tensor, truth: Tensor) -> Tensor | None:
    """Return where a true image is sharper than the photo, [1,1,H,W] of booleans; None for nearly
    nowhere.

    There the truth's detail, its magnitude averaged over `AROUND` x `AROUND` pixels, is `SHARPER`
    times the photo's, and above noise. Both images are [1,3,H,W] in [-1, 1].
    """
    own, wanted = (_mean(detail(x).abs().mean(1, keepdim=True), AROUND) for x in (photo, truth))
    places = (wanted >= SHARPER * own) & (wanted >= QUIET)
    return places if float(places.float().mean()) >= SMALLEST_SHARE else None


def masked_gain(made: Tensor, truth: Tensor, photo: Tensor, places: Tensor) -> float:
    """Return how much less error than repeating the photo an image has in some places, in dB, at
    most `CAP_DB` either way."""
    errors = [((x - truth).double() ** 2 * places).sum().item() for x in (photo, made)]
    floor = max(errors) * 10 ** (-CAP_DB / 10) or 1.0
    before, after = (max(error, floor) for error in errors)
    return 10 * math.log10(before / after)


def restored_detail(made: Tensor, truth: Tensor, photo: Tensor, places: Tensor) -> float:
    """Return the share of the detail that a photo lacks which an image adds, in some places: the
    slope of the added detail over the missing one. 0 is the photo's, 1 the truth's; noise adds 0.
    """
    missing, added = (((detail(x) - detail(photo)).double() * places) for x in (truth, made))
    return float((missing * added).sum() / (missing * missing).sum())


def _mean(images: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(images, side, 1, side // 2, count_include_pad=False)
