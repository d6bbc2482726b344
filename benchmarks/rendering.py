"""What files that render are called with, tiles of a photo, and what `Render` makes of these."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from PIL import Image

from pocketfocus.benchmarks.checks import Check
from pocketfocus.benchmarks.gates import CAPTURED_GRAPH, STUDENT
from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.models.model import resized
from pocketfocus.models.render import (
    Analysed,
    Feeds,
    Render,
    aperture_of,
    focus_weights,
    padded,
    tiles_along,
)
from pocketfocus.models.student import RefocusStudent
from pocketfocus.quantize.calibration import fitted
from pocketfocus.run.constants import Size

FULL = (768, 1152)  # of the photo; training and calibration saw none of it
TILES = ((0, 0), (1, 2), (-1, -1))  # by row and column: a corner, one inside, and the other corner
SETTINGS = ((2.0, 1.0), (6.4, 1.5))  # focus and aperture
POSITION = 4


def render_check(student: RefocusStudent) -> Check:
    """Return the check of files that render: tiles of a photo that the student analysed, each at
    every setting."""
    photo = fitted(Image.fromarray(held_out_photos()[-1]), FULL)
    small = resized(photo, student.photo_size)
    with torch.inference_mode():
        analysed = Analysed(small, student.analyse(small, one_hot(POSITION)), student.photo_size)
        calls = list(product(TILES, SETTINGS))
        feeds = [feeds_of(analysed, photo, *call) for call in calls]
        made = [Render()(*(tensor.double() for tensor in each)).float() for each in feeds]
    inputs = tuple(np.stack(table) for table in zip(*feeds, strict=True))
    parents = dict.fromkeys((STUDENT, CAPTURED_GRAPH), (np.stack(made),))
    return Check(inputs, [(n,) * len(inputs) for n in range(len(calls))], parents)


def feeds_of(
    analysed: Analysed, photo: torch.Tensor, tile: tuple[int, int], setting: tuple[float, float]
) -> Feeds:
    """Return what a file takes for a tile of a photo [1,3,H,W] at a focus and aperture."""
    full: Size = (photo.shape[-2], photo.shape[-1])
    rows, columns = (
        tiles_along(of, small)[number]
        for of, small, number in zip(full, analysed.size, tile, strict=True)
    )
    part = photo[..., rows.start : rows.stop, columns.start : columns.stop]
    focus, aperture = focus_weights(setting[0]), aperture_of(setting[1])
    return padded(analysed.feeds(part, focus, aperture, (rows, columns), full))
