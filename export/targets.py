"""The registry of targets. Adding one is one module with a `TARGET`, and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from pocketfocus.data.optics import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Delegation, TensorSpec

if TYPE_CHECKING:  # what executes a file needs none of these and their many imports
    from pocketfocus.models.student import RefocusStudent
    from pocketfocus.quantize.calibration import Calibration
    from pocketfocus.quantize.recipes import Recipe

TARGETS = {
    "executorch": "pocketfocus.export.executorch",
    "coreml": "pocketfocus.export.coreml",
    "onnx": "pocketfocus.export.onnx",
}

INPUT_NAMES = ("photo", "position")
OUTPUT_NAME = "stack"

Runner = Callable[..., Tensor]
"""(photo [1,3,H,W], position one-hot [1,9]) -> stack [9,3,H,W], or another network's inputs."""


@dataclass(frozen=True)
class Written:
    """What came of writing a file: see `Artifact.taken` and `Artifact.delegation`."""

    taken: dict[str, Any]
    delegation: Delegation | None = None


@dataclass(frozen=True)
class Target:
    """A runtime that files are written for.

    Attributes:
        name: by which users choose it, and the folder of its files.
        suffix: of its files.
        write: (student, recipe, calibration, path) writes one file or folder.
        open: (path, threads) gives what calls it; None threads for the runtime's own default.
            UserError when the file cannot be opened here.
        photo_size: (H, W) of the photo that a file takes, pixels.
        cannot_run: why this machine cannot execute its files; None when it can.
        cannot_write: why this machine cannot write its files; None when it can.
        refuses: why there is no file of a recipe for this target; None when there is.
        runtime: which fact of `Device.describe` tells the version of its runtime.
        fallback: name of the device that checks its files where a device cannot execute them.
    """

    name: str
    suffix: str
    write: Callable[[RefocusStudent, Recipe, Calibration, Path], Written]
    open: Callable[[Path, int | None], Runner]
    photo_size: Callable[[Path], tuple[int, int]]
    cannot_run: Callable[[], str | None]
    cannot_write: Callable[[], str | None]
    refuses: Callable[[Recipe], str | None]
    runtime: str
    fallback: str = ""


def get_target(name: str) -> Target:
    """The target of that name; UserError names the known ones."""
    if name not in TARGETS:
        raise UserError(f"unknown target '{name}': choose from {', '.join(TARGETS)}")
    return cast(Target, import_module(TARGETS[name]).TARGET)


def input_specs(size: tuple[int, int]) -> tuple[TensorSpec, ...]:
    """The inputs that every file takes (design §4), in order."""
    return (
        TensorSpec("photo", (1, 3, *size), "float32", (-1.0, 1.0)),
        TensorSpec("position", (1, FRAMES), "float32", (0.0, 1.0)),
    )


def output_specs(size: tuple[int, int]) -> tuple[TensorSpec, ...]:
    """The output that every file gives."""
    return (TensorSpec(OUTPUT_NAME, (FRAMES, 3, *size), "float32", (-1.0, 1.0)),)


def never(*_: object) -> None:
    """For a target that refuses nothing."""
