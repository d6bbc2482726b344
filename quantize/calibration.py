"""Calibration inputs: real photos at every focal position, as the exported files will see them.

Legend: H, W the size of the photo that a student takes, pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pocketfocus.data.hard import CALIBRATING, hard_picture
from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import TRAIN_PHOTOS, train_photos
from pocketfocus.photos.images import load_photo, prepare
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import CalibrationInputs

DRAWN_POSITIONS = (2, 7)  # of each drawn picture
INPUTS = 2 * FRAMES  # every position twice, each time with another photo


@dataclass(frozen=True)
class Calibration:
    """Named photos [1,3,H,W] in [-1,1], and the (photo index, position) of each input."""

    names: tuple[str, ...]
    photos: tuple[Tensor, ...]
    calls: tuple[tuple[int, int], ...]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The inputs: photo [1,3,H,W], position one-hot [1,9]."""
        for index, position in self.calls:
            yield self.photos[index], one_hot(position)

    def __len__(self) -> int:
        return len(self.calls)

    @cached_property
    def sha256(self) -> str:
        """Hash of every input's pixels and position."""
        digest = hashlib.sha256(repr(self.calls).encode())
        for photo in self.photos:
            digest.update(photo.numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> CalibrationInputs:
        """For the manifest: photo and position of every input, what they cover, and hashes.

        The hash of a photo is that of its pixels as the student sees them.
        """
        return {
            "photos": [self.names[index] for index, _ in self.calls],
            "positions": [position for _, position in self.calls],
            "inputs_at_position": [
                sum(found == position for _, found in self.calls) for position in range(FRAMES)
            ],
            "photo_sha256": {
                name: hashlib.sha256(photo.numpy().tobytes()).hexdigest()
                for name, photo in zip(self.names, self.photos, strict=True)
            },
            "sha256": self.sha256,
        }


def calibration(
    size: tuple[int, int], paths: Sequence[Path] | None = None, inputs: int = INPUTS
) -> Calibration:
    """The middle of photos, and drawn pictures beside them; None for the bundled photos that
    training may use.

    Positions and photos both go round, so that all nine positions are covered and every photo is
    used (as many as `inputs` at most, spread evenly over `paths`). Drawn pictures reach ends of
    ranges that photos leave out (`data.hard`). UserError for unreadable photos
    or none at all.
    """
    if paths is None:
        named = list(zip(TRAIN_PHOTOS, map(Image.fromarray, train_photos()), strict=True))
    elif not paths:
        raise UserError("no photo to calibrate with: name some, or leave --photos out")
    else:
        spread = np.linspace(0, len(paths) - 1, min(len(paths), inputs)).round().astype(int)
        named = [(paths[i].name, load_photo(paths[i], size)) for i in spread]
    calls = [(i % len(named), i % FRAMES) for i in range(max(inputs, FRAMES))]
    for name in CALIBRATING:
        calls += [(len(named), position) for position in DRAWN_POSITIONS]
        named.append((f"{name} (drawn)", hard_picture(name)))
    return Calibration(
        names=tuple(name for name, _ in named),
        photos=tuple(fitted(image, size) for _, image in named),
        calls=tuple(calls),
    )


def fitted(photo: Image.Image, size: tuple[int, int]) -> Tensor:
    """The middle of an RGB photo, cut and scaled to `size`: [1,3,H,W] in [-1,1]."""
    width_height = (size[1], size[0])
    cut = ImageOps.fit(photo.convert("RGB"), width_height, Image.Resampling.LANCZOS)
    return prepare(cut, size).to(torch.float32).contiguous()
