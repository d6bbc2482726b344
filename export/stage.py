"""Write the files that were asked for, and the manifest that says what they are.

A file is made again only when something it depends on has changed: the student, the recipe, the
calibration photos, this code or a toolchain's version. The manifest is saved after every file, so
that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from pocketfocus.export.targets import TARGETS, Target, get_target, input_specs, output_specs
from pocketfocus.models.student import SHIPPED_WEIGHTS, RefocusStudent, load_student
from pocketfocus.quantize.calibration import Calibration, calibration
from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import NAME, RECIPES, Recipe, fields_of, for_ios, get_recipe
from pocketfocus.run.cache import source_hash
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import key_of, sha256, size_bytes, write_atomic
from pocketfocus.run.manifest import MANIFEST_FILE, Artifact, Manifest, load_manifest

STUDENT = "student"
DISTILLED = "distill.json"
STUDENT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
TOOLS = ("torch", "torchao", "executorch", "coremltools", "onnx", "onnxscript", "onnxruntime")

Log = Callable[[str], object]


@dataclass(frozen=True)
class Export:
    """One run of the stage: a loaded student, its calibration, and the manifest without files."""

    out: Path
    student: RefocusStudent
    inputs: Calibration
    empty: Manifest
    log: Log


def export_run(
    student_dir: Path | None,
    out: Path,
    targets: Sequence[str],
    precisions: Sequence[str],
    photos: Sequence[Path] | None = None,
    log: Log = print,
    ios: int | None = None,
    form: str | None = None,
) -> Manifest:
    """Write every target × precision into `out`, skipping what is there already; the manifest.

    `student_dir` None takes the run's own student when `out` has one, else the shipped one.
    `precisions` are names of shipped recipes or YAML files. `photos` calibrate the integer files;
    None for the bundled ones. `ios` is the oldest one that has to read Core ML files, `form` that
    of 4-bit weights in them (see `recipes.FORMS`); None as the recipe says. Files of the same
    student that this call does not ask for stay, those of another student go. UserError for unknown
    names, a recipe that cannot be read or fits no layer, a form that the iOS does not read, a
    student or photos that cannot be read, a missing toolchain, or a folder that cannot be written.
    """
    recipes = [for_ios(get_recipe(name), ios, form) for name in precisions]
    chosen = [(get_target(name), recipe) for name in targets for recipe in recipes]
    check_writable(target for target, _ in chosen)
    run = prepare(student_dir, Path(out), photos, log)
    layers = layers_of(run.student)
    for target, recipe in chosen:
        recipe.asked(target.name, layers)  # UserError before anything is written
    known = previous(run)
    for target, recipe in chosen:
        artifact = make(run, target, recipe, known)
        known = {**previous(run), **known, artifact.name: artifact}
        assemble(run, known).save(run.out)
    return assemble(run, known)


def check_writable(targets: Iterable[Target]) -> None:
    """UserError when the files of one of the targets cannot be written on this machine."""
    for target in {target.name: target for target in targets}.values():
        reason = target.cannot_write()
        if reason is not None:
            raise UserError(f"{target.name} files cannot be written here: {reason}")


def prepare(student_dir: Path | None, out: Path, photos: Sequence[Path] | None, log: Log) -> Export:
    """Bring the student into the run's folder, load it, and read the calibration photos."""
    folder = adopt(student_dir, out, log)
    student = load_student(folder)
    inputs = calibration(student.photo_size, photos)
    empty = Manifest(
        size=student.photo_size,
        artifacts=[],
        student_sha256=sha256(folder),
        student_config={k: v for k, v in student.config.items() if not k.startswith("_")},
        reference=reference_of(out),
        calibration=inputs.describe(),
        tools={name: metadata.version(name) for name in TOOLS},
    )
    return Export(out, student, inputs, empty, log)


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


def previous(run: Export) -> dict[str, Artifact]:
    """By name, what the folder's manifest lists for the same student; the rest is deleted."""
    if not (run.out / MANIFEST_FILE).exists():
        return {}
    try:
        manifest = load_manifest(run.out)
    except UserError as error:
        run.log(f"starting a new manifest: {error}")
        return {}
    if manifest.student_sha256 == run.empty.student_sha256:
        return {artifact.name: artifact for artifact in manifest.artifacts}
    for artifact in manifest.artifacts:
        path = run.out / artifact.name
        if is_ours(artifact) and path.exists():
            run.log(f"{artifact.name}: of another student, deleted")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run.empty.save(run.out)
    return {}


def make(run: Export, target: Target, recipe: Recipe, known: dict[str, Artifact]) -> Artifact:
    """Write one file, unless it is there already or the target refuses the recipe."""
    name = name_of(target, recipe)
    wanted = Artifact(
        name=name,
        target=target.name,
        precision=recipe.name,
        sha256="",
        bytes=0,
        key=file_key(run, target, recipe),
        inputs=input_specs(run.empty.size),
        outputs=output_specs(run.empty.size),
        recipe=fields_of(recipe),
    )
    why = target.refuses(recipe)
    if why is not None:
        run.log(f"{name}: refused, {why}")
        return replace(wanted, status="refused", why=why)
    path, old = run.out / name, known.get(name)
    if old is not None and old.key == wanted.key and path.exists() and sha256(path) == old.sha256:
        run.log(f"{name}: unchanged, kept")
        return old
    started = time.monotonic()
    try:
        with write_atomic(path) as scratch:
            written = target.write(run.student, recipe, run.inputs, scratch)
    except Exception as error:
        error.add_note(f"while writing {path}")
        raise
    taken = dict(written.taken)
    if recipe.calibrated:
        taken["calibration_sha256"] = run.inputs.sha256
    size = size_bytes(path)
    run.log(f"{name}: {size / 1e6:.1f} MB, {time.monotonic() - started:.0f} s")
    return replace(
        wanted, sha256=sha256(path), bytes=size, taken=taken, delegation=written.delegation
    )


def assemble(run: Export, known: dict[str, Artifact]) -> Manifest:
    """The manifest of these artifacts, by target and then precision, shipped ones first."""
    targets, shipped = list(TARGETS), list(RECIPES)

    def place(artifact: Artifact) -> tuple[int, int, str]:
        name = artifact.precision
        rank = shipped.index(name) if name in shipped else len(shipped)
        return targets.index(artifact.target), rank, name

    ours = [artifact for artifact in known.values() if is_ours(artifact)]
    return replace(run.empty, artifacts=sorted(ours, key=place))


def name_of(target: Target, recipe: Recipe) -> str:
    """Path of a file below the run's folder."""
    return path_of(target, recipe.name)


def path_of(target: Target, precision: str) -> str:
    """The same by the name of a recipe."""
    return f"{target.name}/student-{precision}{target.suffix}"


def is_ours(artifact: Artifact) -> bool:
    """Whether an artifact lies where this stage writes one of its target and precision."""
    if artifact.target not in TARGETS or not NAME.fullmatch(artifact.precision):
        return False
    return artifact.name == path_of(get_target(artifact.target), artifact.precision)


def file_key(run: Export, target: Target, recipe: Recipe) -> str:
    """Hash of everything that a file depends on."""
    return key_of(
        target=target.name,
        recipe=fields_of(recipe),
        student=run.empty.student_sha256,
        calibration=run.inputs.sha256 if recipe.calibrated else "",
        code=code_hash(),
        tools=run.empty.tools,
    )


def code_hash() -> str:
    """Hash of the sources that write files."""
    return source_hash("mobile", "quantize", "export")


def reference_of(out: Path) -> str:
    """What `distill` recorded as the model the student learned from; "" when it did not."""
    try:
        found = json.loads((out / DISTILLED).read_text(encoding="utf-8"))["reference"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(found)
