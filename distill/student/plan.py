"""What a distillation is to be, found out before anything is sampled or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketfocus.data.datasets import Request
from pocketfocus.data.stacks import Source
from pocketfocus.distill.student.checks import check_crops, check_preset, open_stacks
from pocketfocus.distill.student.methods import Method, get_method
from pocketfocus.distill.student.options import LEARN_FROM, REFERENCE, Distillation
from pocketfocus.distill.train.checkpoint import Config
from pocketfocus.models.loading import DEFAULT_WEIGHTS
from pocketfocus.models.student import RefocusStudent, build_student, load_student
from pocketfocus.quantize.recipes import fields_of, get_recipe
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import key_of, sha256


@dataclass(frozen=True)
class Plan:
    """A distillation whose options fit each other.

    Attributes:
        options: as they were asked for.
        method: the method of that name.
        student: the start.
        sources: of true stacks; none where the reference alone is learned from.
        size: (height, width) of true stacks.
        config: what a checkpoint has to agree with.
        key: a hash of what teacher stacks depend on.
    """

    options: Distillation
    method: Method
    student: RefocusStudent
    sources: Sequence[Source]
    size: tuple[int, int]
    config: Config
    key: str


def make_plan(options: Distillation) -> Plan:
    """Load the start and open the sources; UserError for what does not fit."""
    method = get_method(options.method)
    if options.qat is not None and not method.student:
        raise UserError(f"{method.name} trains no student that --qat could round: leave it out")
    if options.learn_from not in LEARN_FROM:
        raise UserError(
            f"nothing to learn from {options.learn_from}: choose {', '.join(LEARN_FROM)}"
        )
    student = _start(options)
    largest = max(part.size for part in options.parts)
    size = (largest, largest)
    if method.student:
        check_crops(student, options.parts)
        size = student.photo_size
    wanted = () if options.learn_from == REFERENCE else options.sources
    sources = open_stacks(wanted, Request(options.scenes, size))
    content = _content(options)
    key = key_of(**content, crop=options.parts[0].size, seed=options.seed, student=method.student)
    config = {
        **_config(content, student, options),
        "stacks": list(options.sources),
        "scenes": options.scenes,
        "content of stacks": key_of(sources=[source.key for source in sources]),
    }
    return Plan(options, method, student, sources, size, config, key)


def _start(options: Distillation) -> RefocusStudent:
    if options.from_scratch:
        return build_student(options.preset or "tiny")
    student = load_student(options.start_folder)
    if options.preset is not None:
        check_preset(student, options.preset, options.start_folder)
    return student


def _content(options: Distillation) -> dict[str, Any]:
    """Hash the reference and each photo; a Hub id stands for itself."""
    reference, photos = options.reference, options.photos
    folder = DEFAULT_WEIGHTS if reference == "default" else Path(reference)
    return {
        "reference": sha256(folder) if folder.is_dir() else reference,
        "photos": None if photos is None else [sha256(path) for path in photos],
    }


def _config(
    content: Mapping[str, Any], student: RefocusStudent, options: Distillation
) -> dict[str, Any]:
    """Say what a checkpoint has to agree with, beside the true stacks."""
    method, photos = get_method(options.method), content["photos"]
    config: dict[str, Any] = {
        "method": method.name,
        "reference": content["reference"],
        "photos": "bundled" if photos is None else f"{len(photos)} ({key_of(photos=photos)[:12]})",
        "crops": [asdict(part) for part in options.parts],
        "rate": options.rate,
        "seed": options.seed,
        "learn from": options.learn_from,
        "qat": None if options.qat is None else fields_of(get_recipe(options.qat)),
    }
    if not method.student:
        return config
    sizes = {f"student's {k}": v for k, v in student.config.items() if not k.startswith("_")}
    start = None if options.from_scratch else sha256(options.start_folder)
    return {**config, **sizes, "start": start}
