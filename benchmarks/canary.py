"""The canary of a golden bundle: one photo by which an app chooses a file and a compute unit.

GPUs and NPUs of some phones compute wrongly with files that are right elsewhere, and an app sees it
by one call. A canary is small: a photo of 8 bits, and every `STEP`-th pixel of the student's stack.
Legend: T frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from pocketfocus.benchmarks.checks import Stacks
from pocketfocus.benchmarks.gates import STUDENT, Gate, Verdict, judge
from pocketfocus.benchmarks.saved import AGAIN, GOLDEN_FILE, Decibels, Saved, load, save
from pocketfocus.export.targets import get_target
from pocketfocus.mobile_harness.device import Arrays
from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Artifact
from pocketfocus.run.progress import say
from pocketfocus.run.rows import Row

CANARY = "canary"
STEP = 8  # pixels down and across
MOST_DB = 35.0  # frames in the wrong order, or of another position, have 31 dB at most


class Called(Row):
    """What of a file to call for photos of a size, (H, W): a method or function; "" for all sizes
    alike."""

    name: str
    size: Size


class Try(Row):
    """A file, a compute unit that it may be put on, and the PSNR that it has to reach there, at the
    usual size and at each of its others."""

    file: str
    target: str
    unit: str
    at_least_db: Decibels
    others: tuple[Called, ...] = ()


class Sized(Row):
    """A photo of another size, (H, W), at the same position, and what the student makes of it."""

    size: Size
    photo: Saved
    expected: Saved


class Canary(Row):
    """A photo [1,3,H,W], the focal position that it is said to be focused at, what the student
    makes of it [T,3,H/step,W/step], what to try, in order, and the same photo at other sizes."""

    photo: Saved
    position: int
    step: int = Field(gt=0)
    expected: Saved
    tries: tuple[Try, ...]
    sizes: tuple[Sized, ...] = ()

    def gate_of(self, file: str) -> Gate | None:
        """Return what a file is held against; None where it is not among the tries."""
        found = next((each for each in self.tries if each.file == file), None)
        return None if found is None else Gate(CANARY, STUDENT, found.at_least_db)


def tries_of(
    files: Iterable[tuple[Artifact, float]], sizes: Sequence[Size] = ()
) -> tuple[Try, ...]:
    """Return what an app tries, of files and their gates in dB, and of which sizes beside the usual
    one: the smallest file first, each on its target's compute units in order."""
    ordered = sorted(files, key=lambda each: each[0].bytes)
    return tuple(
        Try(
            file=a.name,
            target=a.target,
            unit=unit,
            at_least_db=min(MOST_DB, gate_db),
            others=tuple(
                Called(name=name_at(a, size), size=size) for size in sizes if a.takes(size)
            ),
        )
        for a, gate_db in ordered
        for unit in get_target(a.target).units
    )


def name_at(artifact: Artifact, size: Size) -> str:
    """Return what of a file to call for photos of a size; "" where it takes all alike."""
    return next((each.name for each in artifact.functions if each.size == size), "")


def make_canary(
    bundle: Path,
    photo: Stacks,
    position: int,
    stack: Stacks,
    tries: Sequence[Try],
    sizes: Sequence[Sized] = (),
) -> Canary:
    """Write the files of a canary into a bundle: a photo [1,3,H,W] and its stack [T,3,H,W]; those
    of other sizes are there."""
    seen = sampled(stack, STEP)
    if judge((seen[None, ::-1],), (seen[None],), MOST_DB).status == "pass":
        say(
            "the canary does not tell frames in the wrong order, so much alike are those of this "
            "photo: take another photo, --photos, with something near and something far"
        )
    return Canary(
        photo=save(bundle, "canary-photo.u8", photo, "uint8"),
        position=position,
        step=STEP,
        expected=save(bundle, "canary-expected.u8", seen, "uint8"),
        tries=tuple(tries),
        sizes=tuple(sizes),
    )


def sampled(stack: Stacks, step: int) -> Stacks:
    """Return every `step`-th pixel of a stack, down and across."""
    return np.ascontiguousarray(stack[..., ::step, ::step])


def check_canary(bundle: Path, canary: Canary, photo: Stacks, position: int) -> None:
    """Raise UserError unless a canary is of this photo and position."""
    if canary.position != position or not np.array_equal(load(bundle, canary.photo), photo):
        raise UserError(
            f"{bundle / GOLDEN_FILE}: the canary is of another photo or position than the first "
            f"input: {AGAIN}"
        )


def canary_verdict(
    bundle: Path, canary: Canary, gate: Gate, outputs: Arrays, sized: Sized | None = None
) -> Verdict:
    """Judge what a file made of the first input, or of the photo of another size, as an app
    does, and that all else which it made is finite."""
    stack, expected = sampled(outputs[0][:1], canary.step), (sized or canary).expected
    return judge((stack, *outputs[1:]), (load(bundle, expected)[None],), gate.threshold_db)
