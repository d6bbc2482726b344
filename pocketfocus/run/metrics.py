"""How near images or stacks of one value range are: PSNR, SSIM, VIF, and detail restored."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pocketfocus.photos.focusmap import box

PEAK = 2.0  # the value range of [-1, 1]
IN_CACHE = 2**17  # elements: whole stacks at once take seven times as long
CAP_DB = 200.0  # reported for identical inputs, so that every figure is a finite JSON number
FINE, AROUND = 5, 15  # pixels: detail is what a mean over FINE² takes away, compared over AROUND²
SHARPER = 1.5  # times the photo's detail: a place is sharper in the truth
SMALLEST_SHARE = 0.005  # of an image's places, below which it counts as none
QUIET = 2 / 255  # detail below this is noise in the photo
SCALES, SMALLEST_VIF = 4, 41  # pixels a side, below which nothing is left of the last scale
EYE_NOISE = 2.0 * (PEAK / 255) ** 2  # its variance, of two in 255 grey levels
FLAT = EYE_NOISE / 200  # a variance below this is rounding


def psnr(a: Tensor, b: Tensor, peak: float = PEAK) -> float:
    """Return the peak signal-to-noise ratio in dB over all elements; at most `CAP_DB`, NaN-poisoned
    inputs give -inf. ValueError when the shapes differ."""
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {list(a.shape)} and {list(b.shape)}")
    parts = zip(*(torch.split(each.reshape(-1), IN_CACHE) for each in (a, b)), strict=True)
    off = (one.double() - other.double() for one, other in parts)
    error = sum(torch.dot(each, each).item() for each in off) / a.numel()
    if not math.isfinite(error):
        return -math.inf
    return CAP_DB if error == 0 else min(CAP_DB, 10 * math.log10(peak**2 / error))


def ssim(a: Tensor, b: Tensor, peak: float = PEAK) -> float:
    """Return the mean structural similarity (Wang et al. 2004, 11-tap Gaussian) of images [B,3,H,W]
    of `peak` around 0; of values from 0 up, as its term of luminance needs and others report it."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds

    above = (a.float() + peak / 2, b.float() + peak / 2)
    value = structural_similarity_index_measure(*above, data_range=peak)
    if not isinstance(value, Tensor):
        raise TypeError("torchmetrics returned more than the mean")
    return float(value)


def vif(made: Tensor, truth: Tensor) -> float | None:
    """Return the visual information fidelity of an image [1,3,H,W] in [-1, 1] (Sheikh and Bovik
    2006, of pixels): the share of the truth's information that is in it, a mean over channels.

    None for images under `SMALLEST_VIF` pixels, and where the truth has none. It is torchmetrics',
    whose Gaussians are no separable ones and take six times as long.
    """
    if min(truth.shape[-2:]) < SMALLEST_VIF:
        return None
    levels = torch.cat([made, truth]).float().flatten(0, 1)[:, None]
    kept = present = torch.zeros(truth.shape[1])
    for scale in range(SCALES):
        taps = 2 ** (SCALES - scale) + 1
        if scale:
            levels = _gaussian(levels, taps)[..., ::2, ::2]
        a, b = levels.chunk(2)
        moments = _gaussian(torch.cat([a, b, a * a, b * b, a * b]), taps)
        mean_a, mean_b, aa, bb, ab = moments.chunk(5)
        var_a, var_b, both = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
        is_seen = (var_a >= FLAT) & (var_b >= FLAT)
        slope = torch.where(is_seen, both.clamp(min=0) / var_b, 0)
        rest = (var_a - slope * both).clamp(min=0) + EYE_NOISE
        kept = kept + torch.log1p(slope**2 * var_b / rest).sum((1, 2, 3))
        present = present + torch.log1p(var_b * (var_b >= FLAT) / EYE_NOISE).sum((1, 2, 3))
    return float((kept / present).mean()) if bool((present > 0).all()) else None


def _gaussian(images: Tensor, taps: int) -> Tensor:
    """Return images [N,1,H,W] filtered by a Gaussian of `taps` pixels a side, where it fits."""
    offsets = torch.arange(taps) - (taps - 1) / 2
    weights = torch.softmax(-(offsets**2) / (2 * (taps / 5) ** 2), 0).tolist()
    for axis in (2, 3):
        left = images.shape[axis] - taps + 1
        total = torch.zeros_like(images.narrow(axis, 0, left))
        for start, weight in enumerate(weights):
            total.add_(images.narrow(axis, start, left), alpha=weight)
        images = total
    return images


def detail(images: Tensor) -> Tensor:
    """Return what a mean over `FINE` x `FINE` pixels takes away, of images [B,3,H,W]."""
    return images - box(images, FINE // 2)


def is_sharper(own: Tensor, wanted: Tensor) -> Tensor:
    """Say where a truth has so much more detail than its photo that it is sharper, and not noise:
    booleans of the shape that both magnitudes broadcast to."""
    return (wanted >= SHARPER * own) & (wanted >= QUIET)


def sharper_places(photo: Tensor, truth: Tensor) -> Tensor | None:
    """Return where a true image is sharper than the photo, [1,1,H,W] of booleans; None for nearly
    nowhere.

    There the truth's detail, its magnitude averaged over `AROUND` x `AROUND` pixels, is `SHARPER`
    times the photo's, and above noise. Both images are [1,3,H,W] in [-1, 1].
    """
    own, wanted = (box(detail(x).abs().mean(1, keepdim=True), AROUND // 2) for x in (photo, truth))
    places = is_sharper(own, wanted)
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
