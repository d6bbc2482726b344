"""What files that render are called with, and with a student's beside them.

Alone they get tiles of a photo, and `Render` says what these make. Both of a pair make the nine
frames of a photo, as large as `refocus` makes them: what a user waits for, but for reading and
writing files.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pocketfocus.benchmarks.checks import Check, student_inputs
from pocketfocus.benchmarks.gates import CAPTURED_GRAPH, STUDENT
from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.mobile_harness.device import Arrays, Device
from pocketfocus.mobile_harness.host import Host
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
from pocketfocus.photos.images import from_pixels
from pocketfocus.photos.pixels import open_photo
from pocketfocus.quantize.calibration import fitted
from pocketfocus.run.constants import FRAMES_SIDE, Size

FULL = (768, 1152)  # of the photo; training and calibration saw none of it
TILES = ((0, 0), (1, 2), (-1, -1))  # by row and column: a corner, one inside, and the other corner
SETTINGS = ((2.0, 1.0), (6.4, 1.5))  # focus and aperture
POSITION = 4
BUNDLED: Size = (FRAMES_SIDE * 3 // 4, FRAMES_SIDE)  # of the bundled photo, enlarged
FRAMES_BUDGET_S = 3.0  # of timed calls of a pair, each of which makes nine frames


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


def photo_inputs(photos: Sequence[Path] | None) -> Arrays:
    """Return the photo, [1,1,3,H,W], and the one-hot of every position; the first of `photos`, or
    a bundled one."""
    if photos is None:
        photo = fitted(Image.fromarray(held_out_photos()[0]), BUNDLED)
    else:
        photo = from_pixels(open_photo(photos[0]).limited(FRAMES_SIDE).in_srgb().pixels)
    return student_inputs(photo.numpy())


def why_no_frames(device: Device) -> str | None:
    """Return why a device makes no frames of two files; None where it does."""
    if isinstance(device, Host):
        return None
    return f"{device.name} calls one file at a time: see the rows of both"
