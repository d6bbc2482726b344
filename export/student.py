"""A student as the network of a run, which holds it beside its files."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from pocketfocus.export.network import Network, Source
from pocketfocus.export.render import render_network, rendering
from pocketfocus.models.model import resized
from pocketfocus.models.student import CELL, SHIPPED_WEIGHTS, Analysis, RefocusStudent, load_student
from pocketfocus.quantize.calibration import Calibration, calibration
from pocketfocus.run.constants import FRAMES, IMAGES, Size, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, sha256, write_atomic
from pocketfocus.run.manifest import MANIFEST_FILE, RENDER, Manifest, TensorSpec, load_manifest
from pocketfocus.run.scratch import sweep

STUDENT = "student"
INPUT_NAMES = ("photo", "position")
DISTILLED, TRAINING = "distill.json", "training"
MOST_PIXELS = 2  # times those of the student's own photo
STUDENT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")

Log = Callable[[str], object]


def student_source(
    student_dir: Path | None,
    out: Path,
    photos: Sequence[Path] | None,
    sizes: Sequence[Size] | None,
    log: Log,
) -> Source:
    """A student, brought into `out` and calibrated with photos, None for the bundled ones; see
    `stage.export_run`. `sizes` (H, W) of photos are those that files take beside the student's own,
    None for `shapes`."""
    folder = adopt(student_dir, out, log)
    student = load_student(folder)
    others = other_sizes(student, sizes)
    inputs = calibration(student.photo_size, photos)
    manifest = Manifest(
        size=student.photo_size,
        artifacts=[],
        student_sha256=sha256(folder),
        student_config=student.config.model_dump(mode="json"),
        reference=reference_of(out),
        calibration=inputs.describe(),
        sizes=(student.photo_size, *others),
        render=rendering(),
    )
    network = student_network(folder, student.photo_size, inputs)
    variants = tuple(student_network(folder, size, at_size(inputs, size)) for size in others)
    network = replace(network, variants=variants, multiple=student.multiple)
    paths = None if photos is None else [str(path) for path in photos]
    again = {"photos": paths, "sizes": [list(size) for size in others]}
    networks = [network, render_network()]
    return Source(networks, [STUDENT, RENDER], manifest.student_sha256, manifest, again)


def other_sizes(student: RefocusStudent, sizes: Sequence[Size] | None) -> list[Size]:
    """The sizes of photos beside the student's own, each once; None for `shapes`.

    UserError for one that the network cannot take, or that is larger than `MOST_PIXELS` of it.
    """
    own, multiple = student.photo_size, student.multiple
    found = shapes(own, multiple) if sizes is None else list(dict.fromkeys(sizes))
    for size in found:
        if any(side % multiple or side < 2 * multiple for side in size):
            raise UserError(
                f"--sizes {size_text(size)}: this student takes sides that are multiples of "
                f"{multiple}, {2 * multiple} at least: round them"
            )
        if math.prod(size) > MOST_PIXELS * math.prod(own):
            raise UserError(
                f"--sizes {size_text(size)} has more than {MOST_PIXELS} times the pixels of this "
                f"student's {size_text(own)}, and would need as much more memory and time: name a "
                "smaller one, or a student of a larger --preset"
            )
    return [size for size in found if size != own]


def shapes(own: Size, multiple: int) -> list[Size]:
    """The sizes that files take unless others are named: the student's own on its side, and a
    square of about as many pixels.

    Each costs a `.pte` 20 s of a core to write and 0.05 MB.
    """
    side = max(2, round(math.sqrt(math.prod(own)) / multiple)) * multiple
    return [own[::-1], (side, side)]


def at_size(inputs: Calibration, size: Size) -> Calibration:
    """An example for photos of another size: what calibrates is the usual size."""
    photo = resized(inputs.photos[0], size).contiguous()
    return Calibration(inputs.names[:1], (photo,), ((0, inputs.calls[0][1]),))


def student_network(folder: Path, size: Size, inputs: Calibration) -> Network:
    """The student of a folder, whose files take photos of `size` (H, W)."""
    photo, position = INPUT_NAMES
    return Network(
        STUDENT,
        partial(load_student, folder),
        (
            TensorSpec(photo, (1, 3, *size), "float32", (-1.0, 1.0)),
            TensorSpec(position, (1, FRAMES), "float32", (0.0, 1.0)),
        ),
        outputs_of(size),
        lambda: list(inputs),
    )


def outputs_of(size: Size) -> tuple[TensorSpec, ...]:
    """What the files give, in the order of `Analysis`; nothing clamps gains and dioptres to their
    ranges."""
    height, width = size
    cells = (height // CELL, width // CELL)
    shapes = ((FRAMES, 3, *size), (1, 3, *size), (1, IMAGES, *size), (1, 1, *cells), (1, FRAMES))
    ranges = ((-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (0.0, 1.0))
    return tuple(
        TensorSpec(name, shape, "float32", span)
        for name, shape, span in zip(Analysis._fields, shapes, ranges, strict=True)
    )


def adopt(student_dir: Path | None, out: Path, log: Log) -> Path:
    """`out/student`, holding the student that was asked for.

    UserError rather than replacing another student that was distilled in `out`, and rather than
    taking the shipped one where a run has lost its own, or has not finished it.
    """
    own = out / STUDENT
    sweep(out)
    if student_dir is None:
        if not own.is_dir():
            check_never_had_its_own(out)
        student_dir = own if own.is_dir() else SHIPPED_WEIGHTS
    if own.is_dir() and own.samefile(student_dir):
        return own
    load_student(student_dir)  # before anything is written: UserError when it is none
    with write_atomic(own) as scratch:
        scratch.mkdir()
        for pattern in STUDENT_FILES:
            for path in sorted(Path(student_dir).glob(pattern)):
                shutil.copy(path, scratch / path.name)
        if own.is_dir() and sha256(own) != sha256(scratch) and (out / DISTILLED).exists():
            raise UserError(
                f"{own} was distilled there and is not {student_dir}: choose another folder with "
                "--out"
            )
    log(f"student: {student_dir}")
    return own


def check_never_had_its_own(out: Path) -> None:
    """Raise UserError for a run that has lost its student, or not yet finished distilling it."""
    signs = [name for name in (DISTILLED, TRAINING, MANIFEST_FILE) if (out / name).exists()]
    if signs == [MANIFEST_FILE]:
        with suppress(UserError):  # a broken one tells nothing
            signs = signs if load_manifest(out).student_sha256 else []
    if signs:
        raise UserError(
            f"{out} had a student of its own, as {signs[0]} tells, and {out / STUDENT} is missing: "
            "distil it (again), name one with --student, or choose another folder with --out"
        )


def reference_of(out: Path) -> str:
    """What `distill` recorded as the model the student learned from; "" when it did not."""
    with suppress(UserError):
        return str(read_json(out / DISTILLED).get("reference", ""))
    return ""
