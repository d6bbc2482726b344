"""What files are called with, and what their outputs are held against.

A student's files take real photos at every focal position, against the eager student and its
captured graph. The networks of a reference take one input that the export kept beside them, with
what fp32 PyTorch makes of it. Legend: P photos, N calls, T = 9 frames, H, W the exported size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from pocketfocus.benchmarks.gates import CAPTURED_GRAPH, DRAWN, DRAWN_DB, OTHER_SIZE, STUDENT
from pocketfocus.data.hard import HARD, hard_picture
from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import HELD_OUT_PHOTOS, held_out_photos
from pocketfocus.mobile_harness.device import Arrays, Call, Job
from pocketfocus.models.student import Analysis, RefocusStudent, load_student
from pocketfocus.photos.images import load_photo, to_uint8
from pocketfocus.quantize.calibration import fitted
from pocketfocus.run.constants import FRAMES, Size, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256, write_atomic
from pocketfocus.run.manifest import Artifact, Manifest
from pocketfocus.run.metrics import PEAK
from pocketfocus.run.progress import step
from pocketfocus.run.text import printable

STACKS_FILE = "stacks.npz"
OTHER_SIZE_POSITIONS = (1, 6)
SHOWN = (0, 4)  # the photo and focal position whose stacks are kept for the report

Stacks = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Check:
    """How the files of one network are checked.

    Attributes:
        inputs: tables of inputs, as of a `Job`.
        calls: the N calls to make.
        parents: what to hold the outputs against, each [N, *shape], by `Gate.parent`.
        peak: of PSNR; None for the range of the parent's output.
        whole: whether it is a network of a reference, whose rows tell what one call takes.
        photos: by their number, the first of a call's, the names of photos; none where the gate's
            name says it.
    """

    inputs: Arrays
    calls: Sequence[Call]
    parents: Mapping[str, Arrays]
    peak: float | None = PEAK
    whole: bool = False
    photos: Sequence[str] = ()

    def job(self, path: Path, target: str) -> Job:
        """Return the job with all calls of a file, whose outputs come back."""
        return Job(str(path), target, self.inputs, self.calls, want_outputs=True)

    def name_of(self, call: int) -> str:
        """Return what a call is of, in words; "" where nothing is known by name."""
        if not self.photos:
            return ""
        number, position = self.calls[call]
        return f"{self.photos[number]}, position {position}"


def is_of_networks(manifest: Manifest) -> bool:
    """Return whether a run holds the networks of a reference, and no student."""
    return not manifest.student_sha256 and bool(manifest.reference)


def saved_check(folder: Path, artifact: Artifact) -> Check:
    """Return what the export of a reference kept for a file; UserError when it is missing."""
    from pocketfocus.export.stage import CHECKS

    network = Path(artifact.name).stem.removesuffix(f"-{artifact.precision}")
    path = folder / CHECKS / f"{network}.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: run export --full again")
    tensors = sorted(load_file(path).items())
    inputs = tuple(value[None] for name, value in tensors if name.startswith("input"))
    expected = tuple(value[None] for name, value in tensors if name.startswith("expected"))
    parents = dict.fromkeys((STUDENT, CAPTURED_GRAPH), expected)
    return Check(inputs, [(0,) * len(inputs)], parents, peak=None, whole=True)


def student_check(
    student: RefocusStudent,
    manifest: Manifest,
    photos: Sequence[Path] | None,
    positions: Sequence[int] | None,
) -> Check:
    """Return the check of a student's files; UserError for photos or a student that do not fit.

    `photos` None for the bundled held-out ones, which calibration never sees; `positions` None for
    all.
    """
    fitting = fitted_photos(photos, manifest.size)
    places = range(FRAMES) if positions is None else positions
    calls = [(index, position) for index in range(len(fitting)) for position in places]
    inputs = student_inputs(fitting)
    with step(f"the student and its captured graph on {len(fitting)} photos"):
        parents = parent_stacks(student, inputs, calls)
        names = HELD_OUT_PHOTOS if photos is None else [printable(path.name) for path in photos]
        return Check(inputs, calls, parents, photos=names)


@dataclass(frozen=True)
class Beside:
    """A check beside that of photos at the usual size.

    Attributes:
        name: how its gate begins.
        check: what is called, and what comes of it.
        size: of what is called, (H, W).
        most_db: no more is needed, whatever the file's own gate; None for that gate.
    """

    name: str
    check: Check
    size: Size
    most_db: float | None = None


def checks_beside(
    student: RefocusStudent, manifest: Manifest, photos: Sequence[Path] | None
) -> list[Beside]:
    """Return the checks of a student's files at their other sizes, of one photo near and far, and
    on drawn pictures (`data.hard`)."""
    found = []
    for size in manifest.sizes[1:]:
        fitting = fitted_photos(None if photos is None else photos[:1], size)[:1]
        check = eager_check(student, fitting, [(0, at) for at in OTHER_SIZE_POSITIONS])
        found.append(Beside(f"{OTHER_SIZE} {size_text(size)}", check, size))
    size = manifest.size
    drawn = np.concatenate([fitted(hard_picture(name), size).numpy() for name in HARD])
    calls = [(number, 2 * number % FRAMES) for number in range(len(HARD))]
    check = replace(eager_check(student, drawn, calls), photos=tuple(HARD))
    return [*found, Beside(DRAWN, check, size, DRAWN_DB)]


def eager_check(student: RefocusStudent, photos: Stacks, calls: Sequence[Call]) -> Check:
    """Return a check against the eager student alone."""
    inputs = student_inputs(photos)
    with torch.inference_mode():
        made = images_of([student.analyse(*given) for given in called(inputs, calls)])
    return Check(inputs, calls, dict.fromkeys((STUDENT, CAPTURED_GRAPH), made))


def called(inputs: Arrays, calls: Sequence[Call]) -> list[tuple[torch.Tensor, ...]]:
    """Return what each call takes."""
    return [
        tuple(torch.from_numpy(table[row]) for table, row in zip(inputs, call, strict=True))
        for call in calls
    ]


def student_inputs(photos: Stacks) -> Arrays:
    """Return a student's inputs: photos [P,1,3,H,W] and the one-hot of every position [9,1,9].

    A call then is (photo, position).
    """
    return photos[:, None], np.eye(FRAMES, dtype=np.float32)[:, None]


def load_parent(folder: Path, manifest: Manifest) -> RefocusStudent:
    """Return the student that the files were made from; UserError when student/ is another one."""
    found = sha256(folder / "student")
    if found != manifest.student_sha256:
        raise UserError(
            f"{folder / 'student'} has SHA-256 {found[:12]}, but the files were made from "
            f"{manifest.student_sha256[:12]}: run export again"
        )
    return load_student(folder / "student")


def parent_stacks(
    student: RefocusStudent, inputs: Arrays, calls: Sequence[Call]
) -> dict[str, Arrays]:
    """Return what files are held against, of the student and its captured graph, by `Gate.parent`:
    stacks [N,9,3,H,W], sharp pictures [N,1,3,H,W], and gains of finer detail [N,1,10,H,W]."""
    given = called(inputs, calls)
    captured = captured_graph(student, tuple(inputs[0][0].shape))
    with torch.inference_mode():
        return {
            name: images_of([Analysis(*network(*pair)) for pair in given])
            for name, network in ((STUDENT, student), (CAPTURED_GRAPH, captured))
        }


@lru_cache(maxsize=1)
def captured_graph(student: RefocusStudent, shape: tuple[int, ...]) -> torch.nn.Module:
    """Return the captured graph of a student for photos of a shape."""
    return torch.export.export(student, (torch.zeros(shape), one_hot(0))).module()


def images_of(made: Sequence[Analysis]) -> Arrays:
    """Return what pictures are made of; dioptres and positions only tell of the photo."""
    names = ("stack", "sharp", "detail")
    return tuple(np.stack([getattr(each, name).numpy() for each in made]) for name in names)


def fitted_photos(paths: Sequence[Path] | None, size: tuple[int, int]) -> Stacks:
    """Return photos [P,3,H,W] in [-1,1], cut to the files' shape; None for the held-out ones."""
    if paths is None:
        images = [Image.fromarray(photo) for photo in held_out_photos()]
    elif not paths:
        raise UserError("no photo to verify on: name some, or leave --photos out")
    else:
        images = [load_photo(path, size) for path in paths]
    return np.concatenate([fitted(image, size).numpy() for image in images])


def shown(stacks: Stacks, calls: Sequence[Call]) -> Pixels:
    """Return the stack for the report, [9,H,W,3], of [N,9,3,H,W]: `SHOWN`, else the first."""
    return to_bytes(stacks[list(calls).index(SHOWN) if SHOWN in calls else 0])


def to_bytes(images: Stacks) -> Pixels:
    """Turn [..., 3, H, W] in [-1,1] into [..., H, W, 3] uint8; what is not a number is grey."""
    return to_uint8(torch.from_numpy(images))


def save_shown(folder: Path, check: Check, files: Mapping[str, Pixels]) -> None:
    """Write stacks.npz for the report: uint8 `photo` [H,W,3] and a stack [9,H,W,3] for `student`
    and each of `files`; an older one stays where the shown stack was not made again."""
    nothing_new = not files and (folder / STACKS_FILE).exists()  # an absent device's
    if SHOWN in check.calls and not nothing_new:
        photo, student = check.inputs[0][SHOWN[0], 0], check.parents[STUDENT][0]
        always = {"photo": to_bytes(photo), "student": shown(student, check.calls)}
        save_stacks(folder / STACKS_FILE, always | dict(files))


def save_stacks(path: Path, stacks: Mapping[str, Pixels]) -> None:
    """Write named uint8 arrays as one .npz, atomically."""
    with write_atomic(path) as scratch, open(scratch, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **stacks)
