"""A first look at a student: a photo between two that it makes of it, focused near and far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pocketfocus.models.model import Model
from pocketfocus.photos.images import Pixels, encoded
from pocketfocus.photos.pixels import resized
from pocketfocus.photos.refocusing import find_position, refocused
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic

SIDE = 900  # pixels of the longer side of each picture
GAP = 8
WHITE = 255


def save_first_look(model: Model, pixels: Pixels, path: Path, student: str = "") -> None:
    """Write a JPEG of three pictures side by side: a photo [H, W, 3] uint8 focused at 0, the photo
    itself, and focused at 8, the farthest; its position is found by its picture. Its comment is the
    hash of the `student` that the model is.

    UserError for a model that finds none.
    """
    if model.analyser is None:
        raise UserError(f"{model.name} does not tell where a photo is focused")
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    photo = resized(pixels, (round(height * scale), round(width * scale)))
    made = refocused(model, photo, find_position(model.analyser, photo, Image.Exif(), "the photo"))
    gap = np.full((photo.shape[0], GAP, 3), WHITE, np.uint8)
    pictures = [made.picture(0.0), gap, photo, gap, made.picture(float(FRAMES - 1))]
    look = Image.fromarray(np.concatenate(pictures, 1))
    content = encoded(look, "jpeg", quality=92, comment=student.encode())
    with write_atomic(path) as partial:
        partial.write_bytes(content)


def student_of(look: Path) -> str:
    """Return the hash of the student that made a first look; "" where it does not tell."""
    try:
        with Image.open(look, formats=("JPEG",)) as image:
            comment = image.info.get("comment", b"")
    except OSError:  # no picture
        return ""
    return bytes(comment).decode("ascii", "replace")
