"""What files of a golden bundle make of photos of their other sizes: one photo a size.

The student's stacks are whole; those of files, of which there are many, are every `STEP`-th pixel,
as a canary's. Legend: T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketfocus.benchmarks.canary import STEP, Canary, Sized, name_at, sampled
from pocketfocus.benchmarks.checks import Check, eager_check, fitted_photos
from pocketfocus.benchmarks.gates import STUDENT, gate_of
from pocketfocus.benchmarks.saved import Saved, save
from pocketfocus.benchmarks.verify import execute
from pocketfocus.mobile_harness.device import Arrays, Device
from pocketfocus.mobile_harness.devices import takes_sizes
from pocketfocus.models.student import COLOURS, RefocusStudent
from pocketfocus.run.constants import FRAMES, Size, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Artifact, Manifest
from pocketfocus.run.rows import Row


class OtherSize(Row):
    """A photo [1,3,H,W] of another size, which is given at the position of the bundle's first
    input, and the student's stack [1,T,3,H,W]."""

    size: Size
    photo: Saved
    student: Saved


class FileAtSize(Row):
    """What of a file to call for photos of a size, "" where it takes all alike, and every
    `STEP`-th pixel of its own stack [1,T,3,H,W], where a device made it."""

    size: Size
    name: str
    expected: Saved | None = None


@dataclass(frozen=True)
class Written:
    """A photo of another size in a bundle, and the check that it is of."""

    other: OtherSize
    check: Check

    def canary(self, bundle: Path) -> Sized:
        """Write what an app takes along of it."""
        seen = sampled(self.check.parents[STUDENT][0][0], STEP)
        expected = save(bundle, f"canary-expected-{size_text(self.other.size)}.u8", seen, "uint8")
        return Sized(size=self.other.size, photo=self.other.photo, expected=expected)


def write_sizes(
    bundle: Path,
    student: RefocusStudent,
    manifest: Manifest,
    photos: Sequence[Path] | None,
    position: int,
) -> list[Written]:
    """Write the first photo at each of a run's other sizes, and the student's stacks."""
    found = []
    for size in manifest.sizes[1:]:
        fitting = fitted_photos(None if photos is None else photos[:1], size)[:1]
        check, text = eager_check(student, fitting, [(0, position)]), size_text(size)
        other = OtherSize(
            size=size,
            photo=save(bundle, f"photo-{text}.u8", fitting, "uint8"),
            student=save(bundle, f"student-{text}.f16", check.parents[STUDENT][0], "float16"),
        )
        found.append(Written(other, check))
    return found


def files_at(
    bundle: Path, artifact: Artifact, path: Path, written: Sequence[Written], device: Device
) -> Iterator[FileAtSize]:
    """Yield the entries of a file for its other sizes, executed where the device can; UserError
    where it misses its own gate."""
    for each in written:
        size, expected = each.other.size, None
        if not artifact.takes(size):
            continue
        if device.why_not(artifact.target) is None and takes_sizes(device):
            text = size_text(size)
            stacks, *_ = own_outputs(device, artifact, path, each.check, f" at {text}")
            name = f"{artifact.name.replace('/', '-')}-{text}.f16"
            expected = save(bundle, name, sampled(stacks, STEP), "float16")
        yield FileAtSize(size=size, name=name_at(artifact, size), expected=expected)


def own_outputs(
    device: Device, artifact: Artifact, path: Path, check: Check, where: str = ""
) -> Arrays:
    """Execute a file and return what it gives; UserError, which says `where`, when it misses its
    own gate."""
    gate = gate_of(artifact.precision, device.name, artifact.recipe)
    job = check.job(path, artifact.target)
    result, verdict = execute(device, job, check.parents[gate.parent], gate)
    if result is None or result.outputs is None or verdict.status != "pass":
        raise UserError(
            f"{artifact.name} misses its own gate{where} ({verdict.why}): no golden bundle is made "
            "of it"
        )
    return result.outputs


def shapes_at(
    others: Sequence[OtherSize], files: Sequence[FileAtSize], canary: Canary
) -> Iterator[tuple[Saved, tuple[int, ...]]]:
    """Yield what is saved of other sizes with the shapes that it has to have."""
    for other in others:
        yield other.photo, (1, COLOURS, *other.size)
        yield other.student, (1, FRAMES, COLOURS, *other.size)

    def seen(size: Size) -> tuple[int, ...]:
        height, width = (len(range(0, side, canary.step)) for side in size)
        return FRAMES, COLOURS, height, width

    for sized in canary.sizes:
        yield sized.photo, (1, COLOURS, *sized.size)
        yield sized.expected, seen(sized.size)
    for file in files:
        if file.expected is not None:
            yield file.expected, (1, *seen(file.size))
