"""A student as the network of a run, which holds it beside its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pocketfocus.export.network import Network, Source
from pocketfocus.models.student import CELL, SHIPPED_WEIGHTS, Analysis, load_student
from pocketfocus.quantize.calibration import Calibration, calibration
from pocketfocus.run.constants import FRAMES, IMAGES, Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256, write_atomic
from pocketfocus.run.manifest import Manifest, TensorSpec

STUDENT = "student"
INPUT_NAMES = ("photo", "position")
DISTILLED = "distill.json"
STUDENT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")

Log = Callable[[str], object]


def student_source(
    student_dir: Path | None, out: Path, photos: Sequence[Path] | None, log: Log
) -> Source:
    """A student, brought into `out` and calibrated with photos; see `stage.export_run`."""
    folder = adopt(student_dir, out, log)
    student = load_student(folder)
    inputs = calibration(student.photo_size, photos)
    manifest = Manifest(
        size=student.photo_size,
        artifacts=[],
        student_sha256=sha256(folder),
        student_config={k: v for k, v in student.config.items() if not k.startswith("_")},
        reference=reference_of(out),
        calibration=inputs.describe(),
    )
    network = student_network(folder, student.photo_size, inputs)
    return Source([network], [STUDENT], manifest.student_sha256, manifest)


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

    UserError rather than replacing another student that was distilled in `out`.
    """
    own = out / STUDENT
    if student_dir is None:
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


def reference_of(out: Path) -> str:
    """What `distill` recorded as the model the student learned from; "" when it did not."""
    try:
        found = json.loads((out / DISTILLED).read_text(encoding="utf-8"))["reference"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(found)
