"""How much a real focal stack blurs from frame to frame, in pixels, and how crisp its pictures are.

What is sharpest in one frame, blurred by a disc, has to be what another frame shows there. The
radius that fits best, for every pair of frames, puts all frames on one line: their distance on it
is the radius in pixels by which focusing on the one defocuses what the other is focused on.

Legend: T frames, H, W pixels. Frames are sRGB [T, 3, H, W] in [-1, 1], near to far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import nnls
from torch import Tensor

from pocketfocus.data.optics import blurred, srgb_to_linear
from pocketfocus.photos.focusmap import luma, sharpness
from pocketfocus.photos.images import from_uint8, to_uint8

Array = NDArray[np.floating[Any]]

RADII = (0, 0.4, 0.8, 1.2, 1.6, 2, 2.5, 3, 3.7, 4.5, 5.5, 7)  # pixels
WIDEST = 6.0  # pixels: wider ones reach into what lies beside
TEXTURED = 0.6  # the share of an image's places that is too plain to tell
FEWEST = 300  # places, below which a frame is not asked
BORDER = 10  # pixels, left out
QUADRATURE = 0.5  # pixels: smaller radii add to the lens's own softness, and are known less well
OUTLIER = 0.2  # of a radius
ROUNDS = 5


@dataclass(frozen=True)
class FocalSteps:
    """Where the frames of a stack lie: `blur` [T] px from the first one, ascending.

    misfit: median share by which single pairs of frames differ from it.
    explained: mean share of the difference of two frames that blurring the sharper one takes away.
    sharpest: share of textured places [T] that are sharpest in a frame.
    """

    blur: Array
    misfit: float
    explained: float
    sharpest: Array


def resized(
    frames: Tensor, sides: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Tensor:
    """Frames, or their part of left, top, right and bottom, at another (height, width), by Pillow's
    Lanczos filter."""
    target, filter_ = (sides[1], sides[0]), Image.Resampling.LANCZOS
    pictures = [Image.fromarray(frame) for frame in to_uint8(frames)]
    scaled = [np.asarray(each.resize(target, filter_, box)) for each in pictures]
    return from_uint8(np.stack(scaled))


def focal_steps(frames: Tensor) -> FocalSteps | None:
    """Measure the frames of a stack against each other; None where too little is sharp in them."""
    top, peak = sharpness(frames).max(0)
    plain = int(TEXTURED * top.numel())
    inner = torch.zeros_like(top, dtype=torch.bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    textured = inner & (top > top.flatten().kthvalue(plain).values)
    light = srgb_to_linear(luma(frames))
    blurs = torch.stack([light, *(blurred(light, radius) for radius in RADII[1:])])[:, :, 0]
    pairs: list[tuple[int, int, float, float]] = []
    explained = []
    for one in range(len(frames)):
        places = textured & (peak == one)
        count = int(places.sum())
        if count < FEWEST:
            continue
        made = blurs[:, one][:, places]
        for other in range(len(frames)):
            if other != one:
                errors = ((made - light[other, 0][places]) ** 2).mean(1).numpy()
                pairs.append((one, other, _best_radius(errors), count))
                explained.append(1 - errors.min() / max(errors[0], 1e-12))
    found = _on_a_line(pairs, len(frames))
    if found is None:
        return None
    shares = [float((textured & (peak == n)).sum() / textured.sum()) for n in range(len(frames))]
    return FocalSteps(*found, float(np.mean(explained)), np.array(shares))


def _best_radius(errors: NDArray[np.float32]) -> float:
    """The radius of the least error: the lowest point of a parabola through it and those beside."""
    at = int(errors.argmin())
    if not 0 < at < len(RADII) - 1:
        return float(RADII[at])
    curve = np.polyfit(RADII[at - 1 : at + 2], errors[at - 1 : at + 2].astype(np.float64), 2)
    return float(-curve[1] / (2 * curve[0]))


def _on_a_line(
    pairs: list[tuple[int, int, float, float]], count: int
) -> tuple[Array, float] | None:
    """Places of frames whose distances are the radii of pairs, and the misfit: least squares over
    gaps that are not negative, outliers weighing little."""
    known = [pair for pair in pairs if pair[2] < WIDEST]
    if len(known) < count:
        return None
    spans = np.zeros((len(known), count - 1))
    for row, (one, other, _, _) in enumerate(known):
        spans[row, min(one, other) : max(one, other)] = 1
    radii = np.array([pair[2] for pair in known])
    weights = np.sqrt([pair[3] for pair in known]) / (QUADRATURE + radii)
    weight = weights
    for _ in range(ROUNDS):
        gaps, _ = nnls(spans * weight[:, None], radii * weight)
        off = np.abs(spans @ gaps - radii) / (QUADRATURE + radii)
        weight = weights / np.sqrt(1 + (off / OUTLIER) ** 2)
    return np.concatenate([[0.0], np.cumsum(gaps)]), float(np.median(off))


def crispness(frames: Tensor) -> float:
    """Contrast of the finest octave over that of the next coarser one, where every place is taken
    from the frame in which it is sharpest."""
    sharpest = sharpness(frames).argmax(0)
    image = luma(frames)[:, 0].gather(0, sharpest[None])[0].double().numpy()
    height, width = image.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    fine, coarse = (power[(frequency >= f) & (frequency < 2 * f)].sum() for f in (1 / 4, 1 / 8))
    return float(np.sqrt(fine / max(coarse, 1e-12)))
