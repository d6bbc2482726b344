"""Real focal stacks of other cameras, as a phone would have taken them, to train a student on.

    python -m pocketfocus.research.real_stacks STACKS OUT --size 272x272

Every camera blurs by its own amount from frame to frame. How much is measured (`focal_steps`), and
also what it is of a phone. A picture that is scaled down blurs less: of every stack that scale and
those nine of its frames are taken between which the blur is nearest to a phone's. No frame is made
up; a stack of which no nine such frames are there is left out, and the reason is said. OUT is a
folder of stacks as `distill --stacks` takes it, of several windows of each, with summary.json.

Legend: T frames, H, W pixels; positions are 0 near to 8 far.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from pocketfocus.cli.arguments import size as size_of
from pocketfocus.data.datasets import TEST, TRAIN
from pocketfocus.data.photo_scenes import PHONE_WIDTH, is_held_out
from pocketfocus.data.stacks import FocalStack, StackFolder
from pocketfocus.photos.images import to_uint8
from pocketfocus.research.focal_steps import Array, FocalSteps, crispness, focal_steps, resized
from pocketfocus.run.constants import FRAMES, Size, size_text
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import check_replaceable, write_atomic, write_json
from pocketfocus.run.metrics import CAP_DB, psnr
from pocketfocus.run.progress import say, track
from pocketfocus.run.rows import Row

PHONE_STEP = 0.62  # px a focal step in pictures of `PHONE_WIDTH`; phones' measure 0.54 to 0.62
APERTURES = (0.8, 1.15)  # of phones, in parts of the usual one
SCALES = 60  # tried
SHIFT = 0.1  # of a focal step: places of the first position that are tried
FARTHEST = 0.75  # focal steps that a frame may lie from its position
DISTINCT = 8  # of the nine frames, at least
REPEATED = 0.1  # focal steps of mean distance that a frame less is worth
MISFIT, EXPLAINED = 0.2, 0.5  # of the measured blur: more and less are no mere blur
CRISPNESS = 0.5  # of a window, below which it is softer than phones' are
DRAWN = 24  # windows, of which those that lie apart are taken
OVERLAP = 0.75  # of the smaller one's area, that two windows may have in common
SMALLEST = 64  # pixels a side of a window
QUALITY = 95  # of JPEG
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Placed:
    """Which frame stands for each position, and px a step in a picture `PHONE_WIDTH` wide.

    farthest, mean: how many focal steps frames lie from the positions that they stand for.
    """

    frames: tuple[int, ...]
    step: float
    farthest: float
    mean: float

    @property
    def distinct(self) -> int:
        """How many frames are there."""
        return len(set(self.frames))


def placed(blur: Array, smallest: float, largest: float) -> Placed:
    """Place frames [T] on the nine positions, for any scale between two of a picture that is
    `PHONE_WIDTH` wide."""
    best: tuple[float, Placed] | None = None
    low, high = APERTURES[0] * PHONE_STEP / largest, APERTURES[1] * PHONE_STEP / smallest
    for step in np.geomspace(low, high, SCALES):
        reach = (FARTHEST * step, (FRAMES - 1 - FARTHEST) * step)
        starts = np.arange(blur[0] - reach[0], max(blur[-1] - reach[1], blur[0]), SHIFT * step)
        places = starts[:, None] + step * np.arange(FRAMES)
        distances = np.abs(blur - places[..., None]) / step
        nearest, off = distances.argmin(-1), distances.min(-1)
        for frames, apart in zip(nearest, off, strict=True):
            off_by = (float(apart.max()), float(apart.mean()))
            found = Placed(tuple(map(int, frames)), float(step), *off_by)
            beyond = max(0.0, found.farthest - FARTHEST)
            cost = found.mean + REPEATED * (FRAMES - found.distinct) + beyond
            if best is None or cost < best[0]:
                best = (cost, found)
    assert best is not None
    return best[1]


@dataclass(frozen=True)
class Window:
    """A part of a stack: its left, top, right and bottom in the stack's own pixels, and the scale,
    as the picture's shorter side over `PHONE_WIDTH`."""

    box: tuple[float, float, float, float]
    scale: float

    def overlap(self, other: Window) -> float:
        """The area that two have in common, in parts of the smaller one."""
        (left, top, right, bottom), (x, y, far, low) = self.box, other.box
        width = max(0.0, min(right, far) - max(left, x))
        height = max(0.0, min(bottom, low) - max(top, y))
        areas = ((right - left) * (bottom - top), (far - x) * (low - y))
        return width * height / min(areas)


def windows(sides: Size, size: Size, scales: tuple[float, float], rng: Generator) -> list[Window]:
    """Windows of a size at random scales and places in a stack of these sides (height, width), no
    two of them nearly the same."""
    found: list[Window] = []
    for _ in range(DRAWN):
        scale = rng.uniform(*scales)
        pixels = min(sides) / (PHONE_WIDTH * scale)
        height, width = (
            min(side, pixels * wanted) for side, wanted in zip(sides, size, strict=True)
        )
        top, left = rng.uniform(0, sides[0] - height), rng.uniform(0, sides[1] - width)
        window = Window((left, top, left + width, top + height), scale)
        if all(window.overlap(other) < OVERLAP for other in found):
            found.append(window)
    return found


class StackRow(Row):
    """What was measured of a stack (`FocalSteps`), which frames were chosen (`Placed`) and at which
    scales its windows are, or why it was left out."""

    name: str
    left_out: str
    blur_px: list[float] | None
    misfit: float | None
    explained: float | None
    frames: list[int] | None
    step_px: float | None
    farthest_steps: float | None
    scales: list[float]


class Summary(Row):
    """What summary.json holds: windows' (height, width), how many are for training and evaluation,
    what copying scores by distance, and a row a stack."""

    size: list[int]
    train: int
    test: int
    copy_db: list[float]
    stacks: list[StackRow]

    def table(self) -> str:
        """How many windows there are, and what copying scores by distance, as a table."""
        usable = sum(not row.left_out for row in self.stacks)
        heads = "".join(f" | d={d}" for d in range(1, FRAMES))
        values = "".join(f" | {value:.1f}" for value in self.copy_db)
        return (
            f"| stacks | used | windows{heads} |\n"
            f"| ---: | ---: | ---:{' | ---:' * (FRAMES - 1)} |\n"
            f"| {len(self.stacks)} | {usable} | {self.train + self.test}{values} |"
        )


@dataclass
class Converted:
    """What became of a stack: its windows, the stacks [9, 3, H, W] cut from them, or why there are
    none; and what was measured of it."""

    name: str
    reason: str = ""
    steps: FocalSteps | None = None
    place: Placed | None = None
    windows: Sequence[Window] = ()
    parts: Sequence[Tensor] = ()

    def row(self) -> StackRow:
        """What summary.json says of it."""
        steps, place = self.steps, self.place
        return StackRow(
            name=self.name,
            left_out=self.reason,
            blur_px=None if steps is None else [round(float(x), 2) for x in steps.blur],
            misfit=None if steps is None else round(steps.misfit, 3),
            explained=None if steps is None else round(steps.explained, 3),
            frames=None if place is None else list(place.frames),
            step_px=None if place is None else round(place.step, 3),
            farthest_steps=None if place is None else round(place.farthest, 2),
            scales=[round(window.scale, 3) for window in self.windows],
        )


def converted(stack: FocalStack, size: Size, count: int) -> Converted:
    """Turn a stack into so many windows of a size at most."""
    found, sides = Converted(stack.name), (stack.frames.shape[-2], stack.frames.shape[-1])
    largest = min(sides) / PHONE_WIDTH
    smallest = largest * max(wanted / side for wanted, side in zip(size, sides, strict=True))
    if smallest > largest:
        found.reason = f"it is {size_text(sides)}, smaller than a window of {size_text(size)}"
        return found
    small = (round(sides[0] / largest), round(sides[1] / largest))
    found.steps = focal_steps(resized(stack.frames, small))
    if found.steps is None:
        found.reason = "too little of it is sharp, or its frames are no blur of each other"
        return found
    found.place = placed(found.steps.blur, smallest, largest)
    found.reason = _no_phone(found.steps, found.place)
    if not found.reason:
        low, high = (share * PHONE_STEP / found.place.step for share in APERTURES)
        scales = (max(low, smallest), max(smallest, min(high, largest)))
        _cut_crisp(found, stack.frames[list(found.place.frames)], size, scales, count)
    return found


def _no_phone(steps: FocalSteps, place: Placed) -> str:
    """Why a stack cannot be a phone's at any scale; empty where it can."""
    if steps.explained < EXPLAINED:
        return (
            f"blur explains {steps.explained:.0%} of the difference of frames, not "
            f"{EXPLAINED:.0%}: something moves, or light changes"
        )
    if steps.misfit > MISFIT:
        return f"pairs of frames differ from one line by {steps.misfit:.0%}, over {MISFIT:.0%}"
    if place.distinct < DISTINCT:
        return (
            f"{place.distinct} of its frames lie near the nine positions, {DISTINCT} are needed "
            f"({len(steps.blur)} frames over {steps.blur[-1]:.1f} px)"
        )
    if place.farthest > FARTHEST:
        return f"a frame lies {place.farthest:.2f} steps from its position, over {FARTHEST}"
    return ""


def _cut_crisp(
    found: Converted, frames: Tensor, size: Size, scales: tuple[float, float], count: int
) -> None:
    """Cut windows that are as crisp as a phone's."""
    rng = np.random.default_rng(zlib.crc32(found.name.encode()))
    sides = (frames.shape[-2], frames.shape[-1])
    kept: list[tuple[Window, Tensor]] = []
    softest = 0.0
    for window in windows(sides, size, scales, rng)[:count]:
        part = resized(frames, size, window.box)
        crisp = crispness(part)
        if crisp >= CRISPNESS:
            kept.append((window, part))
        softest = max(softest, crisp)
    if kept:
        found.windows, found.parts = zip(*kept, strict=True)
    else:
        found.reason = f"its crispness is {softest:.2f}, a phone's {CRISPNESS} and more"


def copied(frames: Tensor) -> list[float]:
    """PSNR in dB of repeating a frame of [9, 3, H, W] for another that is d = 1..8 positions from
    it, [8]: the mean over all such pairs, without those that one frame stands for."""
    found = []
    for d in range(1, FRAMES):
        values = [psnr(frames[n], frames[n + d]) for n in range(FRAMES - d)]
        found.append(float(np.mean([value for value in values if value < CAP_DB])))
    return found


def convert(folder: Path, out: Path, size: Size, count: int) -> Summary:
    """Write the stacks of a folder as a phone's into another, a folder a window, with lists of
    those for training and for evaluation; what summary.json says. UserError when none is usable."""
    check_replaceable(out, (SUMMARY,), "OUT")
    rows, copies = [], []
    names: dict[str, list[str]] = {TRAIN: [], TEST: []}
    source = StackFolder(folder, register=True)
    with write_atomic(out) as scratch:
        scratch.mkdir()
        for stack in track(source, "converting stacks", len(source.names)):
            found = converted(stack, size, count)
            if found.reason:
                say(f"{stack.name} left out: {found.reason}")
            for number, part in enumerate(found.parts):
                name = f"{stack.name}-{number}"
                _write(scratch / name, part)
                names[TEST if is_held_out(stack.name) else TRAIN].append(name)
                copies.append(copied(part))
            rows.append(found.row())
        if not copies:
            raise UserError(
                f"none of the {len(rows)} stacks in {folder} can be brought to a phone's with "
                f"windows of {size_text(size)}: take others, or a smaller --size"
            )
        for split, listed in names.items():
            if all(names.values()):
                (scratch / f"{split}_scenes.txt").write_text("\n".join(listed) + "\n", "utf-8")
        summary = Summary(
            size=list(size),
            train=len(names[TRAIN]),
            test=len(names[TEST]),
            copy_db=[round(float(value), 2) for value in np.mean(copies, axis=0)],
            stacks=rows,
        )
        write_json(scratch / SUMMARY, summary.as_json())
    return summary


def _write(folder: Path, frames: Tensor) -> None:
    folder.mkdir()
    for position, frame in enumerate(to_uint8(frames)):
        Image.fromarray(frame).save(folder / f"{position}.jpg", quality=QUALITY, subsampling=0)


@reported("real_stacks")
def main(arguments: Sequence[str] | None = None) -> None:
    """Convert a folder, and print how it compares."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketfocus.research.real_stacks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("stacks", type=Path, help="a folder of focal stacks")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--size", default="272x272", help="of the windows, WIDTHxHEIGHT")
    parser.add_argument("--windows", type=int, default=4, help="of a stack at most")
    given = parser.parse_args(arguments)
    if given.windows < 1:
        raise UserError(f"--windows {given.windows} leave nothing: give 1 or more")
    summary = convert(given.stacks, given.out, size_of(given.size, SMALLEST), given.windows)
    print(summary.table())


if __name__ == "__main__":
    main()
