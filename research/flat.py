"""How models refocus flat things that face the phone, beside repeating the photo.

    python -m pocketfocus.research.flat student

A page of text, photographs, lights in the dark and a plain sky are rendered where positions 1, 4
and 7 focus, and every frame of such a stack is a photo once. Frames on both sides of the thing's
own distance are the same, so repeating the photo is exact for one of them: errors are pooled over
all other frames before they become decibels.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from pocketfocus.data.optics import (
    Camera,
    Layer,
    dioptres,
    linear_to_srgb,
    render_stack,
    srgb_to_linear,
)
from pocketfocus.data.scenes import HELD_OUT_PHOTOS, bundled_photos
from pocketfocus.export.open import open_model
from pocketfocus.models.model import Model, refocus
from pocketfocus.photos.images import from_uint8, light_to_uint8
from pocketfocus.run.constants import FRAMES, Size
from pocketfocus.run.errors import reported
from pocketfocus.run.metrics import PEAK

SIZE: Size = (320, 448)
PLACES = (1, 4, 7)  # positions that focus on the thing
LETTERS, LINES, INK = 16, 22, 20  # pixels, pixels, level
WORDS = "The quick brown fox jumps over it 0123456789"
SKY_ABOVE, SKY_BELOW = (110, 150, 220), (170, 190, 230)
LIGHTS, LIGHT, DARK, DIM = 40, 3, 8, 120  # of them, pixels a side, levels
HEADER = "| flat thing | copy, dB | model, dB | over copy | in focus | worst photo | no worse |"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Refocused:
    """A photo of a flat thing: the position that is in focus on it, its own, and the mean squared
    errors of the other eight frames where the photo is repeated and as a model makes them."""

    place: int
    position: int
    copied: float
    made: float

    @property
    def gain(self) -> float:
        """How much nearer to the truth than the photo the frames are, dB."""
        return decibels(self.made) - decibels(self.copied)


def page() -> Pixels:
    """A page of text [H,W,3]."""
    sheet = Image.new("RGB", SIZE[::-1], "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTERS)
    for top in range(LINES // 2, SIZE[0] - LETTERS, LINES):
        draw.text((LINES // 2, top), WORDS, fill=(INK, INK, INK), font=font)
    return np.asarray(sheet)


def sky() -> Pixels:
    """A sky [H,W,3] that is brighter towards the horizon."""
    down = np.linspace(0, 1, SIZE[0])[:, None, None]
    column = (1 - down) * SKY_ABOVE + down * SKY_BELOW
    return np.broadcast_to(column, (*SIZE, 3)).round().astype(np.uint8)


def lights() -> Pixels:
    """Coloured lights in the dark [H,W,3]."""
    rng, night = np.random.default_rng(0), np.full((*SIZE, 3), DARK, np.uint8)
    for _ in range(LIGHTS):
        top, left = (int(rng.integers(LIGHT, side - 2 * LIGHT)) for side in SIZE)
        night[top : top + LIGHT, left : left + LIGHT] = rng.integers(DIM, 256, 3)
    return night


def things() -> dict[str, Pixels]:
    """What is photographed, by name, [320,448,3]: two photographs are of those that no training
    sees."""
    framed = {
        f"a photograph ({name})": np.asarray(ImageOps.fit(Image.fromarray(photo), SIZE[::-1]))
        for name, photo in bundled_photos(HELD_OUT_PHOTOS).items()
    }
    drawn = {"a page of text": page(), "lights in the dark": lights(), "a plain sky": sky()}
    return {**framed, **drawn}


def stack_of(thing: Pixels, place: int) -> Tensor:
    """The focal stack [9,3,H,W] in [-1,1] of a thing where a position focuses."""
    light = srgb_to_linear(torch.from_numpy(thing.copy()).permute(2, 0, 1).float() / 255)
    everywhere = torch.ones(light.shape[1:])
    layer = Layer(light, everywhere, everywhere * dioptres(place))
    return from_uint8(light_to_uint8(linear_to_srgb(render_stack([layer], Camera()))))


def study(model: Model, thing: Pixels, places: Sequence[int] = PLACES) -> list[Refocused]:
    """Refocus every frame of a thing's stacks from its true position."""
    rows = []
    for place in places:
        stack = stack_of(thing, place)
        for position, photo in enumerate(stack):
            others = [n for n in range(FRAMES) if n != position]
            truth, made = stack[others], refocus(model, photo[None], position)[others]
            errors = (float((each - truth).square().mean()) for each in (photo, made))
            rows.append(Refocused(place, position, *errors))
    return rows


def decibels(error: float) -> float:
    """The PSNR of a mean squared error of values in [-1, 1], infinite where there is none."""
    return 10 * math.log10(PEAK**2 / error) if error else math.inf


def pooled(photos: Sequence[Refocused]) -> tuple[float, float]:
    """The PSNRs of the errors of photos together, repeated and as a model makes them."""
    copied, made = fmean(each.copied for each in photos), fmean(each.made for each in photos)
    return decibels(copied), decibels(made)


def row(name: str, photos: Sequence[Refocused]) -> str:
    """A row of the table; where the photo is the truth everywhere, nothing is compared."""
    copied, made = pooled(photos)
    if math.isinf(copied):
        return f"| {name} | exact | {made:.1f} | – | – | – | – |"
    sharp_copied, sharp_made = pooled([each for each in photos if each.place == each.position])
    worst = min(each.gain for each in photos)
    share = 100 * np.mean([each.gain >= 0 for each in photos])
    return (
        f"| {name} | {copied:.1f} | {made:.1f} | {made - copied:+.1f} | "
        f"{sharp_made - sharp_copied:+.1f} | {worst:+.1f} | {share:.0f} % |"
    )


@reported("flat")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row of each thing."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketfocus.research.flat", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model", metavar="MODEL", help="a student or a file of one")
    model = open_model(parser.parse_args(arguments).model)
    print(f"{HEADER}\n| --- |{' ---: |' * 6}")
    for name, thing in things().items():
        print(row(name, study(model, thing)), flush=True)


if __name__ == "__main__":
    main()
