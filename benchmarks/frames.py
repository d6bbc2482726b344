"""Nine frames of a photo by two files of a run, as `bench` measures them: what a user waits for.

The photo is as large as `refocus` makes nine frames of. Reading and writing files is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pocketfocus.data.scenes import held_out_photos
from pocketfocus.mobile_harness.device import Arrays, Device
from pocketfocus.mobile_harness.host import Host
from pocketfocus.photos.images import from_pixels
from pocketfocus.photos.pixels import open_photo
from pocketfocus.quantize.calibration import fitted
from pocketfocus.run.constants import FRAMES, FRAMES_SIDE, Size

BUNDLED: Size = (FRAMES_SIDE * 3 // 4, FRAMES_SIDE)  # of the bundled photo, enlarged
BUDGET_S = 5.0  # of timed calls of a pair, each of which makes nine frames


def photo_inputs(photos: Sequence[Path] | None) -> Arrays:
    """Return the photo, [1,1,3,H,W], and the one-hot of every position; the first of `photos`, or
    a bundled one."""
    if photos is None:
        photo = fitted(Image.fromarray(held_out_photos()[0]), BUNDLED)
    else:
        photo = from_pixels(open_photo(photos[0]).limited(FRAMES_SIDE).in_srgb().pixels)
    return photo[None].numpy(), np.eye(FRAMES, dtype=np.float32)[:, None]


def why_no_frames(device: Device) -> str | None:
    """Return why a device makes no frames of two files; None where it does."""
    if isinstance(device, Host):
        return None
    return f"{device.name} calls one file at a time: see the rows of both"
