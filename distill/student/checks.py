"""What a distillation refuses before anything is sampled or trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pocketfocus.data.datasets import Request, open_source
from pocketfocus.data.optics import FRAMES
from pocketfocus.data.stacks import Source, StackFolder
from pocketfocus.distill.train.crops import Crops
from pocketfocus.models.loading import LEARN2REFOCUS
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import RefocusStudent, build_student
from pocketfocus.run.errors import UserError


def check_reference(reference: ReferencePipeline) -> None:
    """Raise UserError for a reference whose config tells of another number of frames.

    The published one is exempt: its config is still that of the video model it was tuned from.
    """
    frames = reference.unet.config.num_frames
    if frames != FRAMES and reference.name not in ("learn2refocus", LEARN2REFOCUS):
        raise UserError(
            f"the student expects {FRAMES} frames, {reference.name} makes {frames} (num_frames in "
            f"its unet/config.json): name a refocusing model, or write {FRAMES} there if it was "
            "fine-tuned to as many"
        )


def check_preset(student: RefocusStudent, preset: str, folder: Path) -> None:
    """Raise UserError, naming what differs, unless a student is of this preset."""
    wanted = build_student(preset).config
    different = [
        f"its {name} is {_shown(student.config[name])}, not {_shown(wanted[name])}"
        for name in wanted
        if not name.startswith("_") and _shown(student.config[name]) != _shown(wanted[name])
    ]
    if different:
        raise UserError(
            f"{folder} is no student of preset {preset} ({'; '.join(different)}): leave out "
            "--preset, or distil a new one with --from-scratch"
        )


def check_crops(student: RefocusStudent, crops: Sequence[Crops]) -> None:
    """Raise UserError for crops larger than the student's photos, of which true stacks have the
    size."""
    largest, (height, width) = max(part.size for part in crops), student.photo_size
    if min(height, width) < largest:
        raise UserError(
            f"the student's photos are {width}x{height} pixels, crops need {largest}: take a "
            f"smaller --crop, {min(height, width) // 64 * 64} at most, or a larger --preset with "
            "--from-scratch"
        )


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def open_stacks(specs: Sequence[str], request: Request) -> list[Source]:
    """Open the sources of true stacks; UserError for a folder with images of several sizes."""
    sources = [open_source(spec, request) for spec in specs]
    for source in sources:
        if isinstance(source, StackFolder):
            check_sizes(source)
    return sources


def check_sizes(folder: StackFolder) -> None:
    """Raise UserError, naming two that differ, unless all images of a folder have one size."""
    first: tuple[Path, tuple[int, int]] | None = None
    for path, size in folder.sizes():
        first = first or (path, size)
        if size != first[1]:
            names = [p.relative_to(folder.folder).as_posix() for p in (first[0], path)]
            raise UserError(
                f"the stacks in {folder.folder} are of mixed sizes ({names[0]} is "
                f"{first[1][0]}x{first[1][1]}, {names[1]} is {size[0]}x{size[1]}): scale them to "
                "one, or put them into folders of their own and name each with --stacks"
            )
