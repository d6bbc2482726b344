"""manifest.json: every file of a run and what a native app has to know to call it.

Artifacts are named by their path below the run's folder, such as `executorch/student-int8.pte`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from typing_extensions import TypedDict  # the only one that pydantic takes on Python 3.11

from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import once_a_file, read_json, sha256, write_json
from pocketfocus.run.paths import below

MANIFEST_FILE = "manifest.json"
STUDENT = "student"  # its folder in a run, and what rows call it
RENDER = "render"  # the stem of files that render, before their precision
FRAMES_OF = "nine-frames"  # in place of a student's file's stem: that file and what renders beside
HASHES_VERSION = 2  # of manifest.json and golden.json: hashes of files are what sha256sum prints
Side = Annotated[int, Interval(gt=0, lt=1 << 24)]  # of a tensor: else nonsense is allocated
Sides = tuple[Side, Side]
Count = Annotated[int, Interval(ge=0, lt=1 << 63)]
SHOWN_DIGITS = 12  # of a hash, in messages

JSON_NAMES = {"applied": "taken", "not_delegated": "fallen_out"}  # of fields that have others
EXACT = {  # of pydantic, which checks what is read
    "extra": "forbid",
    "alias_generator": lambda name: JSON_NAMES.get(name, name),
    "validate_by_name": True,
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a file: float32 of a fixed shape, its values within `range`."""

    __pydantic_config__ = EXACT

    name: str
    shape: tuple[Side, ...]
    dtype: str
    range: tuple[float, float]


@dataclass(frozen=True)
class Delegation:
    """How much of a .pte file its backend took: `share` = delegated_ops / total_ops in [0, 1].

    `not_delegated` names the operators that run outside the delegate, once for each occurrence.
    """

    __pydantic_config__ = EXACT

    calls: int
    delegated_ops: int
    total_ops: int
    share: float
    not_delegated: tuple[str, ...]


@dataclass(frozen=True)
class Compatibility:
    """Which runtimes and systems load a file, as its format's makers say and as was tried."""

    __pydantic_config__ = EXACT

    must: str
    may: str
    cannot: str
    source: str


@dataclass(frozen=True)
class Function:
    """What of a file to call for photos of one `size`, (H, W) in pixels: a method of a `.pte`, a
    function of a Core ML package. All share the file's weights."""

    __pydantic_config__ = EXACT

    name: str
    size: Sides


@dataclass(frozen=True)
class Artifact:
    """One file that was written.

    Attributes:
        name: path below the run's folder.
        target: name of the export target.
        precision: name of the recipe.
        sha256: of the file or folder, see `run.files.sha256`.
        bytes: of the file or folder.
        status: that there is a file, for apps that look for it.
        why: always empty, for the same apps.
        key: hash of everything the file was made from; the same key needs no new file.
        inputs: in the order in which the file takes them.
        outputs: in the order in which the file gives them.
        recipe: the fields of the recipe: what was asked for.
        applied: what the backend took instead, from the file itself: counts and plain sentences.
        delegation: of ExecuTorch files; None elsewhere.
        functions: for photos of each size, the usual one first; `inputs` and `outputs` are those
            of that one. None where the file has a single function.
        multiple: where not 0, the file takes photos of any size whose sides are multiples of it.
        compatibility: what loads the file; None where nobody says.
    """

    __pydantic_config__ = EXACT

    name: str
    target: str
    precision: str
    sha256: str
    bytes: Count
    status: Literal["written"] = "written"
    why: Literal[""] = ""
    key: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    recipe: dict[str, object] = field(default_factory=dict)
    applied: dict[str, Any] = field(default_factory=dict)
    delegation: Delegation | None = None
    functions: tuple[Function, ...] = ()
    multiple: Count = 0
    compatibility: Compatibility | None = None

    def takes(self, size: Size) -> bool:
        """Return whether a student's file takes photos of a size that is not its usual one."""
        if self.multiple:
            return not any(side % self.multiple for side in size)
        return any(function.size == size for function in self.functions)


@dataclass(frozen=True)
class Pair:
    """A student's file and the one that renders beside it, which make a photo's nine frames."""

    student: Artifact
    render: Artifact

    @property
    def name(self) -> str:
        """What rows call both, such as `onnx/nine-frames-int8`."""
        return f"{self.student.target}/{FRAMES_OF}-{self.student.precision}"

    @property
    def sha256(self) -> str:
        """Hash of both hashes."""
        return hashlib.sha256(f"{self.student.sha256}{self.render.sha256}".encode()).hexdigest()


@dataclass(frozen=True)
class Rendering:
    """How an image of any size is made of a photo and of what a student's file says of it.

    Attributes:
        tile: (H, W) of the photo that a call takes at most, pixels.
        part: (h, w) of what was analysed that such a tile may lie in at most, pixels.
        overlap: pixels that neighbouring tiles have in common.
        given: what each input is, in words, by its name; shapes and ranges are those of `files`.
        files: one a target, which goes with the student's of every precision.
    """

    __pydantic_config__ = EXACT

    tile: Sides
    part: Sides
    overlap: int = 0
    given: dict[str, str] = field(default_factory=dict)
    files: Sequence[Artifact] = ()


class CalibrationInputs(TypedDict, total=False):
    """What integer files were calibrated with; empty where nothing was.

    `photos` and `positions` are those of every input, `inputs_at_position` counts them, hashes are
    of every photo and of all inputs.
    """

    __pydantic_config__ = EXACT  # type: ignore[misc]

    photos: list[str]
    positions: list[int]
    inputs_at_position: list[int]
    photo_sha256: dict[str, str]
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All of a run's artifacts, and what they were made from.

    Attributes:
        size: (H, W) of the photo that the files take, pixels.
        artifacts: by target, then precision.
        student_sha256: of the student's folder.
        student_config: its config.json.
        sigma_steps: noise levels at which the student is called; empty for the one-step student,
            which takes no noise.
        reference: the model the student was distilled from; "" when not known.
        calibration: what integer files were calibrated with.
        other_calibrations: what some of them were instead, in an earlier call with other photos;
            which one says the `calibration_sha256` of what a file's backend took.
        tools: version of every package that shaped the files; both where files differ in it.
        sizes: (H, W) of all the photos that files take, `size` first; which of them one does says
            `Artifact.takes`. Of Core ML files for iOS 17 and Core AI files it is the only one.
        render: how images of a photo's own size are made; None for networks of a reference.
    """

    __pydantic_config__ = EXACT

    size: Sides
    artifacts: Sequence[Artifact]
    student_sha256: str = ""
    student_config: dict[str, object] = field(default_factory=dict)
    sigma_steps: tuple[float, ...] = ()
    reference: str = ""
    calibration: CalibrationInputs = field(default_factory=CalibrationInputs)
    other_calibrations: tuple[CalibrationInputs, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    sizes: tuple[Sides, ...] = ()
    render: Rendering | None = None

    @property
    def files(self) -> list[Artifact]:
        """All files of the run: the artifacts, and those that render."""
        return [*self.artifacts, *(self.render.files if self.render else ())]

    @property
    def pairs(self) -> list[Pair]:
        """Every student's file with the one that renders beside it, where there is one."""
        rendering = {file.target: file for file in (self.render.files if self.render else ())}
        found = ((file, rendering.get(file.target)) for file in self.artifacts)
        return [Pair(file, render) for file, render in found if render is not None]

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes by name, of all that rows of results tell of: files, pairs, and the student."""
        own = {STUDENT: self.student_sha256} if self.student_sha256 else {}
        files = {artifact.name: artifact.sha256 for artifact in self.files}
        return own | files | {pair.name: pair.sha256 for pair in self.pairs}

    def hashes_in(self, folder: Path) -> dict[str, str]:
        """Return `hashes` without those of files in the run's folder that have changed since."""
        pairs = {pair.name: (pair.student.name, pair.render.name) for pair in self.pairs}
        stated = {name: of for name, of in self.hashes.items() if name not in pairs}
        there = {name: below(folder, name) for name in stated}
        changed = {
            name for name, path in there.items() if path.exists() and sha256(path) != stated[name]
        }
        changed |= {name for name, files in pairs.items() if changed & {*files}}
        return {name: of for name, of in self.hashes.items() if name not in changed}

    def save(self, folder: Path) -> None:
        """Write folder/manifest.json, atomically."""
        content = asdict(self, dict_factory=_as_json)
        write_json(folder / MANIFEST_FILE, content, HASHES_VERSION)


def renders(name: str) -> bool:
    """Return whether a file of that name makes no stacks, but images of them."""
    return Path(name).name.startswith(f"{RENDER}-")


def makes_stacks(name: str) -> bool:
    """Return whether what rows call so makes stacks alone: a student's file or an eager model."""
    return not renders(name) and not Path(name).name.startswith(f"{FRAMES_OF}-")


def load_manifest(folder: Path) -> Manifest:
    """Return the manifest of a run; UserError when it is missing, broken or of another version."""
    return _read(Path(folder) / MANIFEST_FILE)


def load_exported(folder: Path) -> Manifest:
    """Return the manifest of a run that holds files; UserError for one of none, of which nothing
    could be said, and as of `load_manifest`."""
    manifest = load_manifest(folder)
    if not manifest.artifacts:
        raise UserError(f"{folder} holds no file: run export again")
    return manifest


@once_a_file
def _read(path: Path) -> Manifest:
    from pydantic import TypeAdapter, ValidationError  # what executes a file needs none of it

    content = read_json(path, HASHES_VERSION, "run export again")
    del content["schema_version"]
    try:
        manifest = TypeAdapter(Manifest).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path} cannot be read ({where}: {first['msg']}): run export again"
        ) from None
    for artifact in manifest.files:
        below(path.parent, artifact.name)
    return manifest


def _as_json(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {JSON_NAMES.get(name, name): value for name, value in fields}


def check_artifact(folder: Path, artifact: Artifact) -> Path:
    """Return the path of an artifact whose hash is as recorded.

    UserError when it is missing, is not the file that was written, or lies outside of `folder`.
    """
    path = below(folder, artifact.name)
    if not path.exists():
        raise UserError(f"{path} is missing, the manifest lists it: run export again")
    found = sha256(path)
    if found != artifact.sha256:
        raise UserError(
            f"{path} has SHA-256 {found[:SHOWN_DIGITS]}, the manifest says "
            f"{artifact.sha256[:SHOWN_DIGITS]}: run export again"
        )
    return path
