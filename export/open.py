"""Open any model by a name: the reference, a student, or an exported file; all called alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketfocus.data.optics import one_hot
from pocketfocus.export.targets import Runner, Sizes, Target, get_target, get_targets, target_of
from pocketfocus.models.analyse import Analyser
from pocketfocus.models.model import Model
from pocketfocus.models.places import STUDENTS, shipped_student
from pocketfocus.run.child import Say
from pocketfocus.run.constants import FRAMES, SELF_ENSEMBLE
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import MANIFEST_FILE, check_artifact, load_manifest
from pocketfocus.run.processes import Work, WorkFailed, run_work

if TYPE_CHECKING:
    from pocketfocus.run.child import Arrays

REFERENCE, AUTOENCODER = "reference", "autoencoder"
SHIPPED = ", ".join(f"`{name}`" for name in STUDENTS)
ATTEMPT_S = 300.0  # for one call of a file that nobody vouches for
LARGEST = 8192  # pixels of a side of what it takes


def open_any(spec: str) -> Model:
    """As `open_model`, and `autoencoder[:DIR_or_HUB_ID]`, a reference's alone, which encodes and
    decodes the true stack; for evaluations."""
    kind, _, rest = spec.partition(":")
    if kind != AUTOENCODER or (spec != kind and Path(spec).exists()):
        return open_model(spec)
    from pocketfocus.models.loading import load_reference

    pipeline = load_reference(rest or "default")

    @torch.inference_mode()
    def reconstruct(stack: Tensor) -> Tensor:
        latents = pipeline.encode(stack) * pipeline.vae.config.scaling_factor
        return pipeline.decode(latents[None]).clamp(-1, 1)

    def refuse(photo: Tensor, position: int) -> Tensor:
        raise UserError(f"{spec} refocuses nothing: it can be evaluated only")

    return Model(spec, None, refuse, reconstruct=reconstruct)


def open_model(spec: str, threads: int | None = None) -> Model:
    """Open `reference[:DIR_or_HUB_ID][@SAMPLING]`, `student` or `student-open` (the shipped ones),
    a student folder, or an exported file; with `@self-ensemble` after it, one of the latter that
    analyses every photo twice, once mirrored, and takes the mean.

    SAMPLING is STEPS[/GUIDANCE[/TEMPERATURE]], else the reference's own. A file that a manifest
    lists is used only if its hash is as recorded. `threads` limits an exported file's runtime, or
    PyTorch in this process. UserError when there is no such model, it cannot be read, or this
    machine cannot execute it.
    """
    plain = place_of(spec)
    if plain != spec:
        return _in_the_mean(open_model(plain, threads))
    path, target, is_reference = Path(spec), target_of(Path(spec)), names_reference(spec)
    if target is not None and not is_reference:
        return _file(path, target, threads)
    if threads is not None:
        torch.set_num_threads(threads)
    if is_reference:
        return _reference(spec)
    student = shipped_student(spec)
    if student is not None or path.is_dir():
        return _student(student or path)
    suffixes = ", ".join(target.suffix for target in get_targets())
    raise UserError(
        f"no model at {spec}: name `{REFERENCE}`, `{REFERENCE}:DIR@STEPS`, {SHIPPED}, a student "
        f"folder, or a file ending in {suffixes}"
    )


def place_of(spec: str) -> str:
    """What a model's name says of where it is: without `@self-ensemble`."""
    return spec if Path(spec).exists() else spec.removesuffix(SELF_ENSEMBLE)


def _in_the_mean(model: Model) -> Model:
    name = f"{model.name}{SELF_ENSEMBLE}"
    if model.analyser is None:
        raise UserError(
            f"{name} is none: {model.name} makes stacks alone, and what analyses photos, a student "
            "or its file, has a self-ensemble"
        )
    return replace(model, name=name, analyser=replace(model.analyser, self_ensemble=True))


def names_reference(spec: str) -> bool:
    """Whether `open_model` opens a reference, for which it imports diffusers."""
    named, _, _ = spec.partition("@")
    kind, _, _ = named.partition(":")
    return kind == REFERENCE and (named == REFERENCE or not Path(spec).exists())


def _reference(name: str) -> Model:
    from pocketfocus.models.loading import load_reference
    from pocketfocus.models.reference import published_size

    named, _, sampling = name.partition("@")
    pipeline = load_reference(named.partition(":")[2] or "default")
    how = pipeline.sampling.changed(sampling) if sampling else pipeline.sampling
    fit = None if pipeline.relative else published_size
    return Model(name, None, lambda photo, at: pipeline(photo, at, how), fit=fit)


def _student(path: Path) -> Model:
    from pocketfocus.models.student import load_student

    student = load_student(path)
    name = path.name
    pixels = math.prod(student.photo_size)
    return Model(
        name,
        None,
        lambda photo, position: student.stack(photo, one_hot(position)),
        Analyser(name, student, multiple=student.multiple, pixels=pixels),
    )


def _file(path: Path, target: Target, threads: int | None) -> Model:
    if not path.exists():
        raise UserError(f"{path} does not exist: export it, or name another file")
    listed, reason = _is_listed(path), target.cannot_run()
    if reason is not None:
        raise UserError(f"{path} cannot be executed here: {reason}")
    if not listed:
        _check_foreign(path, target)
    run, sizes = target.open(path, threads), target.sizes(path)
    analyser = analyser_of_file(path.name, run, sizes)
    return Model(
        path.name,
        sizes.listed[0],
        lambda photo, position: run(photo, one_hot(position))[0],
        analyser,
    )


def analyser_of_file(name: str, run: Runner, sizes: Sizes) -> Analyser:
    """What analyses photos of any size with a file that takes these."""
    if sizes.multiple:
        pixels = math.prod(sizes.listed[0])
        return Analyser(name, run, multiple=sizes.multiple, pixels=pixels)
    return Analyser(name, run, sizes=sizes.listed)


def _check_foreign(path: Path, target: Target) -> None:
    """UserError for a file that is not a student's, tried out in a process of its own: what is
    damaged makes runtimes crash."""
    given = {"path": str(path.resolve()), "target": target.name}
    try:
        run_work(Work(f"{__name__}:attempt", given), timeout_s=ATTEMPT_S)
    except WorkFailed as error:
        raise UserError(f"{path} cannot be executed ({error}): export it again") from error


def attempt(
    arguments: Mapping[str, str], arrays: Arrays, say: Say
) -> tuple[dict[str, str], dict[str, NDArray[np.float32]]]:
    """Open a file and call it once; UserError unless it makes a focal stack of a photo."""
    path, target = Path(arguments["path"]), get_target(arguments["target"])
    shapes = [tuple(shape) for shape in target.input_shapes(path)]
    photo = shapes[0] if shapes else ()
    fits = len(photo) == 4 and photo[:2] == (1, 3) and all(0 < n <= LARGEST for n in photo)
    if not fits or shapes[1:] != [(1, FRAMES)]:
        raise UserError(f"{path} takes {shapes}, no photo and its position: name a student's file")
    made = target.open(path, None)(torch.zeros(photo), one_hot(0))
    found = tuple(made[0].shape) if made else ()
    if found != (FRAMES, *photo[1:]):
        raise UserError(f"{path} makes {found}, no stack of {photo}: name a student's file")
    return {}, {}


def _is_listed(path: Path) -> bool:
    """Whether the run's manifest lists the file; UserError when with another hash."""
    folder = path.resolve().parent.parent
    if not (folder / MANIFEST_FILE).is_file():
        return False
    name = path.resolve().relative_to(folder).as_posix()
    for artifact in load_manifest(folder).artifacts:
        if artifact.name == name:
            check_artifact(folder, artifact)
            return True
    return False
