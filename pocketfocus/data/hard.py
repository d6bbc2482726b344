"""Pictures that no camera takes but people do: drawn pages, charts, plain colours.

Photos hardly ever reach the ends of a network's ranges; these do. Some calibrate quantized files
beside photos, all are what `verify` tries the files on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Picture = NDArray[np.uint8]

WIDTH, HEIGHT = 448, 320
ENDS = np.array([0, 255], np.uint8)  # black, white
SQUARES, STRIPES, LINES = 8, 16, 14  # pixels
WORDS = "The quick brown fox jumps over the lazy dog 0123456789 "


def _text() -> Picture:
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(page)
    for top in range(6, HEIGHT, LINES):
        draw.text((6, top), WORDS * 2, fill="black")
    return np.asarray(page)


def _noise() -> Picture:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def _squares() -> Picture:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] // SQUARES
    return _grey(ENDS[(rows + columns) % 2])


def _ramp() -> Picture:
    return _grey(np.tile(np.linspace(ENDS[0], ENDS[1], WIDTH).astype(np.uint8), (HEIGHT, 1)))


def _colours() -> Picture:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    channels = (columns // STRIPES, rows // STRIPES, (rows + columns) // STRIPES)
    return np.stack([ENDS[channel % 2] for channel in channels], -1)


def _grey(values: Picture) -> Picture:
    return np.repeat(values[..., None], 3, -1)


def _plain(*colour: int) -> Callable[[], Picture]:
    return lambda: np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


HARD: dict[str, Callable[[], Picture]] = {
    "text": _text,
    "noise": _noise,
    "checkerboard": _squares,
    "white": _plain(255, 255, 255),
    "black": _plain(0, 0, 0),
    "red": _plain(255, 0, 0),
    "ramp": _ramp,
    "colours": _colours,
}
"""By name, what draws each: [320, 448, 3]."""
CALIBRATING = ("text", "noise", "checkerboard")  # those that widen ranges


def hard_picture(name: str) -> Image.Image:
    """Draw a picture of `HARD`."""
    return Image.fromarray(HARD[name]())
