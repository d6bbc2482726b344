"""What a distillation is to be, and what it refuses, before anything is sampled or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pocketfocus.data.datasets import Request, is_rgbd, open_source
from pocketfocus.data.stacks import Source, StackFolder
from pocketfocus.distill.student.detail import FACTOR
from pocketfocus.distill.student.options import LEARN_FROM, REFERENCE, Distillation
from pocketfocus.distill.train.checkpoint import Config
from pocketfocus.models.places import find_places
from pocketfocus.models.student import RefocusStudent, build_student, load_student
from pocketfocus.quantize.recipes import get_recipe
from pocketfocus.run.constants import Size, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import key_of, sha256

MARGIN = 16  # pixels that scenes of photos with depth are larger than crops of them


@dataclass(frozen=True)
class Sized:
    """A source, and the size of its stacks."""

    source: Source
    size: Size


@dataclass(frozen=True)
class Plan:
    """A distillation whose options fit each other."""

    options: Distillation
    student: RefocusStudent  # to start from
    sources: Mapping[Size, Sequence[Source]]  # of true stacks, by their size; none where teacher
    # stacks alone are learned from
    large: Sized | None  # of true stacks at twice the analysis's size, if any is crisp enough
    config: Config  # what a checkpoint has to agree with
    key: str  # a hash of what teacher stacks depend on


def make_plan(options: Distillation) -> Plan:
    """Load the start and open the sources; UserError for what does not fit."""
    method = options.chosen
    if options.qat is not None and not method.qat:
        raise UserError(f"{method.name} trains no student that --qat could round: leave it out")
    if options.learn_from not in LEARN_FROM:
        raise UserError(
            f"nothing to learn from {options.learn_from}: choose {', '.join(LEARN_FROM)}"
        )
    student, largest = _start(options), max(part.size for part in options.parts)
    if method.student:
        _check_crops(student.photo_size, largest)
    sources, large = _sources(options, student, largest)
    reference = find_places(options.reference).key
    photos = None if options.photos is None else [sha256(path) for path in options.photos]
    key = key_of(
        reference=reference,
        photos=photos,
        crop=options.parts[0].size,
        seed=options.seed,
        student=method.student,
    )
    config = {
        **_config(options, student),
        "reference": reference,
        "photos": "bundled" if photos is None else f"{len(photos)} ({key_of(photos=photos)[:12]})",
        "content of stacks": key_of(
            sources=[source.key for group in sources.values() for source in group]
        ),
    }
    return Plan(options, student, sources, large, config, key)


def _sources(
    options: Distillation, student: RefocusStudent, largest: int
) -> tuple[dict[Size, list[Source]], Sized | None]:
    """Open the sources of true stacks, by the size of these, and one of twice the analysis's size.

    Of photos with depth, scenes are windows into phone pictures as large as the student's.
    """
    whole = student.photo_size if options.chosen.student else (largest, largest)
    window = (largest + MARGIN, largest + MARGIN) if options.chosen.student else whole
    found: dict[Size, list[Source]] = {}
    large: Sized | None = None
    for spec in () if options.learn_from == REFERENCE else options.sources:
        mapped = is_rgbd(spec)
        size = window if mapped else whole
        request = Request(
            options.scenes, size, phone_width=min(whole), register=True, seed=options.seed
        )
        opened = _open(spec, request, largest)
        found.setdefault(opened.size, []).append(opened.source)
        if mapped and options.chosen.detail and options.qat is None:
            scenes, side = max(1, options.scenes // 4), FACTOR * options.parts[0].size + MARGIN
            width = FACTOR * min(whole)
            request = Request(scenes, (side, side), phone_width=width, seed=options.seed)
            source = open_source(spec, request)
            large = Sized(source, request.rendered) if source.names else large
    return found, large


def _start(options: Distillation) -> RefocusStudent:
    if options.from_scratch:
        return build_student(options.preset or "tiny")
    student = load_student(options.start_folder)
    if options.preset is not None:
        _check_preset(student, options.preset, options.start_folder)
    return student


def _config(options: Distillation, student: RefocusStudent) -> dict[str, object]:
    """Say what a checkpoint has to agree with of the options and the start."""
    config: dict[str, object] = {
        "method": options.method,
        "crops": [asdict(part) for part in options.parts],
        "rate": options.schedule.learning_rate,
        "optimizer": options.schedule.optimizer,
        "seed": options.seed,
        "learn from": options.learn_from,
        "qat": None if options.qat is None else get_recipe(options.qat).model_dump(mode="json"),
        "stacks": list(options.sources),
        "scenes": options.scenes,
    }
    if not options.chosen.student:
        return config
    sizes = {f"student's {k}": v for k, v in student.config.model_dump(mode="json").items()}
    start = None if options.from_scratch else sha256(options.start_folder)
    return {**config, **sizes, "start": start}


def _check_preset(student: RefocusStudent, preset: str, folder: Path) -> None:
    """Raise UserError, naming what differs, unless a student is of this preset."""
    found, wanted = (one.config.model_dump(mode="json") for one in (student, build_student(preset)))
    pairs = [(name, found[name], wanted[name]) for name in wanted]
    different = [f"its {name} is {own}, not {other}" for name, own, other in pairs if own != other]
    if different:
        raise UserError(
            f"{folder} is no student of preset {preset} ({'; '.join(different)}): leave out "
            "--preset, or distil a new one with --from-scratch"
        )


def _check_crops(photo: tuple[int, int], largest: int) -> None:
    """Raise UserError for crops larger than the student's photos, (height, width), of which true
    stacks have the size."""
    height, width = photo
    if min(height, width) < largest:
        raise UserError(
            f"the student's photos are {width}x{height} pixels, crops need {largest}: take a "
            f"smaller --crop, {min(height, width) // 64 * 64} at most, or a larger --preset with "
            "--from-scratch"
        )


def _open(spec: str, request: Request, largest: int) -> Sized:
    """Open a source of true stacks; UserError, naming two images that differ, for a folder whose
    images are not all of one size.

    Those of a folder that are smaller than the student's photo, but hold crops, stay as they are:
    they are windows into phone pictures, and enlarged they would blur by more a focal step.
    """
    source = open_source(spec, request)
    if not isinstance(source, StackFolder):
        return Sized(source, request.rendered)
    found: dict[tuple[int, int], Path] = {}
    for path, size in source.sizes():
        found.setdefault(size, path)
        if len(found) > 1:
            (one, first), (other, second) = found.items()
            names = [p.relative_to(source.folder).as_posix() for p in (first, second)]
            raise UserError(
                f"the stacks in {source.folder} are of mixed sizes ({names[0]} is "
                f"{size_text(one)}, {names[1]} is {size_text(other)}): scale them to one, or put "
                "them into folders of their own and name each with --stacks"
            )
    own, wanted = next(iter(found), request.rendered), request.rendered
    if min(own) >= largest and (own[0] < wanted[0] or own[1] < wanted[1]):
        return Sized(open_source(spec, replace(request, size=own)), own)
    return Sized(source, wanted)
