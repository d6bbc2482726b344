"""A photo refocused at its own size: analysed once, then a picture of any focus and aperture.

The photo stays in whole numbers; tiles of it become floats, are rendered, and are written back.
Legend: H, W of the photo, h, w of its analysis, T = 9 frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import IFDRational
from torch import Tensor

from pocketfocus.data.optics import dioptres, distance
from pocketfocus.models.analyse import Analyser, areas, averaged, likely_position
from pocketfocus.models.model import Model, refocus
from pocketfocus.models.render import Analysed, aperture_of, focus_weights, span_of
from pocketfocus.models.student import CELL, enlarged
from pocketfocus.photos.focusmap import all_in_focus, best_focus
from pocketfocus.photos.images import (
    WORKING_PIXELS,
    Pixels,
    from_pixels,
    photo_size,
    prepare,
    to_pixels,
    to_uint8,
)
from pocketfocus.photos.pixels import EIGHT_BITS
from pocketfocus.run.constants import FRAMES, Size, size_text
from pocketfocus.run.progress import say

TILE = 1024  # pixels a side of what is rendered at a time
BAND = 128  # rows of a photo that are scaled at a time
PARTS = 10_000  # of a metre
INFINITY = 0xFFFFFFFF  # EXIF's numerator of an infinite distance
CLOSE, DISTANT = 2, 3  # EXIF's ranges from about 1 m on: the last focal position


class Refocused(Protocol):
    """A photo of which pictures are made."""

    def picture(self, focus: float, aperture: float = 1.0) -> Pixels:
        """The picture focused at 0.0..8.0, at an aperture of 0..2 times the phone's: [H, W, 3]."""

    def focus_map(self) -> Tensor:
        """Where every place is sharpest, 0.0..8.0, the photo at a smaller size: [h, w]."""


@dataclass(frozen=True)
class Rendered:
    """A photo with its analysis."""

    analysed: Analysed
    pixels: Pixels

    @torch.inference_mode()
    def picture(self, focus: float, aperture: float = 1.0) -> Pixels:
        """The picture at the photo's own size and depth, rendered tile by tile; UserError for a
        focus or aperture that is none."""
        weights, opening = focus_weights(focus), aperture_of(aperture)
        made = np.empty_like(self.pixels)
        full, small = self.pixels.shape[:2], self.analysed.size
        for rows, columns in product(*(_ranges(side, TILE) for side in full)):
            place = slice(*rows), slice(*columns)
            spans = span_of(*rows, full[0], small[0]), span_of(*columns, full[1], small[1])
            tile = from_pixels(self.pixels[place])
            image = self.analysed.render(tile, weights, opening, spans, full, exact=False)
            to_pixels(image, made[place])
        return made

    def focus_map(self) -> Tensor:
        """Where every place of the analysis is sharpest, by how far away the student sees it.

        On real stacks that is nearer to the truth than where its own frames are sharpest.
        """
        height, width = self.analysed.size
        near = enlarged(self.analysed.analysis.dioptres, float(CELL))[0, 0, :height, :width]
        return (1 - near).clamp(0, 1) * (FRAMES - 1)


@dataclass(frozen=True)
class Enlarged:
    """A photo of `size` with the stack [9, 3, h, w] in [-1, 1] of a model that makes no more."""

    stack: Tensor
    size: Size

    def picture(self, focus: float, aperture: float = 1.0) -> Pixels:
        """The picture between two frames, and between them and one sharp everywhere, enlarged."""
        weights, opening = focus_weights(focus)[0], float(aperture_of(aperture))
        image = (weights @ self.stack.flatten(1)).reshape(self.stack.shape[1:])
        if opening != 1:
            image = opening * image + (1 - opening) * all_in_focus(self.stack)
        picture = Image.fromarray(to_uint8(image))
        return np.asarray(picture.resize(self.size[::-1], Image.Resampling.BICUBIC))

    def focus_map(self) -> Tensor:
        """Where every place of the stack is sharpest."""
        return best_focus(self.stack)


def refocused(model: Model, pixels: Pixels, position: int, whole: bool = True) -> Refocused:
    """Refocus a photo [H, W, 3] that was taken at a focal position.

    A model that gives stacks alone gets it squashed to its own size, or to that which it says fits
    (bicubic, as Learn2Refocus resizes), or else to multiples of 64 that hold as many pixels as the
    shipped reference was trained at. What it makes is stretched back, and enlarged to the photo's
    size, saying so, if that is to be `whole`. UserError for a position that is none and a model
    whose output is no stack.
    """
    height, width = pixels.shape[:2]
    if model.analyser is not None:
        return Rendered(analysed(model.analyser, pixels, position), pixels)
    shallow = pixels if pixels.dtype == np.uint8 else (pixels // EIGHT_BITS).astype(np.uint8)
    image = Image.fromarray(shallow)
    if model.size is None and model.fit is not None:
        working = prepare(image, model.fit((height, width)), Image.Resampling.BICUBIC)
    else:
        working = prepare(image, model.size or WORKING_PIXELS)
    own = photo_size((working.shape[-2], working.shape[-1]), (height, width))
    if whole and max(own) < max(height, width):
        made, size = size_text(own), size_text((height, width))
        say(f"{model.name} makes frames of {made} pixels: enlarged to {size}")
    return Enlarged(refocus(model, working, position), (height, width) if whole else own)


def analysed(analyser: Analyser, pixels: Pixels, position: int | None) -> Analysed:
    """The analysis of a photo [H, W, 3]; a position of None stands for an unknown one."""
    height, width = pixels.shape[:2]
    fit = analyser.fit((height, width))
    return analyser.analyse(reduced(pixels, fit.size), fit, position)


def find_position(analyser: Analyser, pixels: Pixels, exif: Image.Exif, name: str) -> int:
    """The focal position of a photo, by its EXIF data or else by its picture; says which."""
    camera = exif.get_ifd(IFD.Exif)
    position = focused_at(camera.get(Base.SubjectDistance), camera.get(Base.SubjectDistanceRange))
    how = "by its EXIF data"
    if position is None:
        position, near = likely_position(analysed(analyser, pixels, None).analysis)
        how = f"by its picture, {near:.0%} sure within one position; else say --position"
    say(f"{name} was taken at position {position} ({distance(position)}), {how}")
    return position


def tell_focus(exif: Image.Exif, focus: float) -> None:
    """Write into EXIF data where a picture is focused, 0.0..8.0, which is found there again."""
    camera, power = exif.get_ifd(IFD.Exif), dioptres(focus)
    camera.pop(Base.SubjectDistanceRange, None)
    parts = round(PARTS / power) if power > 0 else INFINITY
    is_far = parts >= INFINITY
    camera[Base.SubjectDistance] = IFDRational(INFINITY, 1) if is_far else IFDRational(parts, PARTS)


def focused_at(metres: object, range_of: object = None) -> int | None:
    """The focal position of EXIF's SubjectDistance or SubjectDistanceRange; None where these do not
    tell it."""
    far = FRAMES - 1 if range_of in (CLOSE, DISTANT) else None
    try:
        value = float(metres)  # type: ignore[arg-type]
        is_infinite = getattr(metres, "numerator", 0) == INFINITY
    except (TypeError, ValueError, ZeroDivisionError):
        return far
    if is_infinite or math.isinf(value):
        return FRAMES - 1
    if not value > 0:
        return far
    return min(range(FRAMES), key=lambda position: abs(dioptres(position) - 1 / value))


def focus_at(focus: Tensor, x: float, y: float) -> float:
    """The focus at a point of a map [h, w], by fractions 0..1 of its width and height."""
    height, width = focus.shape
    row, column = min(height - 1, int(y * height)), min(width - 1, int(x * width))
    return round(float(focus[row, column]), 2)


def reduced(pixels: Pixels, size: Size) -> Tensor:
    """Scale [H, W, 3] to [1, 3, *size] in [-1, 1], as `averaged` does, few rows at a time."""
    height, width = pixels.shape[:2]
    if height <= size[0]:
        return averaged(from_pixels(pixels), size)
    rows, parts = areas(height, size[0]), []
    for first, last in _ranges(size[0], max(1, BAND * size[0] // height)):
        start, stop = first * height // size[0], -(-last * height // size[0])
        parts.append(rows[first:last, start:stop] @ from_pixels(pixels[start:stop]))
    return torch.cat(parts, -2) @ areas(width, size[1]).T


def _ranges(length: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, step):
        yield start, min(length, start + step)
