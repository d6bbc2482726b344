"""The distill stage: reference, photos and a starting student in; the method's result out."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketfocus.data.datasets import SYNTHETIC, Request
from pocketfocus.data.optics import FRAMES
from pocketfocus.data.scenes import train_photos
from pocketfocus.data.stacks import Source, cache_sources
from pocketfocus.distill.reference.phases import fingerprint, resume
from pocketfocus.distill.student.checks import check_crops, check_preset, check_teacher, open_stacks
from pocketfocus.distill.student.methods import Method, get_method
from pocketfocus.distill.student.qat import rounded
from pocketfocus.distill.student.regression import StudentLearner, pooled
from pocketfocus.distill.student.teacher_stacks import (
    Pixels,
    Sample,
    load_target,
    sample_batch,
    teacher_targets,
    true_batch,
)
from pocketfocus.distill.student.trainer import Learner
from pocketfocus.distill.train.checkpoint import FILE, check_config
from pocketfocus.distill.train.crops import Crops, check_size, current
from pocketfocus.distill.train.distributed import main_process_first, process_state
from pocketfocus.distill.train.loop import Schedule, Task, Trainer
from pocketfocus.distill.train.plot import loss_plot
from pocketfocus.distill.train.run_log import LOG
from pocketfocus.models.loading import load_reference
from pocketfocus.models.places import find_places
from pocketfocus.models.reference import ReferencePipeline, Sampling
from pocketfocus.models.student import SHIPPED_WEIGHTS, RefocusStudent, build_student, load_student
from pocketfocus.photos.images import from_uint8, load_photo
from pocketfocus.quantize.calibration import calibration
from pocketfocus.quantize.recipes import fields_of, get_recipe
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import key_of, read_json, sha256, write_atomic, write_json
from pocketfocus.run.metrics import psnr
from pocketfocus.run.progress import console

SAMPLING_SHARE = 0.2  # of the minutes go into sampling the reference, at most
MOST_TARGETS = 600
HELD_OUT_SHARE = 0.2  # of the targets choose between the weights before and after
SCENES = 24
TEACHER_POOL, TEACHER_WEIGHT = 4, 0.2  # pixels, and against true stacks; see `distill_run`
BOTH, REFERENCE, STACKS = LEARN_FROM = ("both", "reference", "stacks")
TRAINING = "training"  # the folder of the checkpoint, train.jsonl and TensorBoard's files
TAKEN = "targets.json"  # there: how many targets the training began with


@dataclass(frozen=True)
class Distillation:
    """How to distil. `minutes` bounds sampling the reference and training together, `steps` the
    training. With `steps` alone nothing depends on the clock.

    preset: of the student; a start has to be of it. From scratch, None is `tiny`.
    sources: of true stacks, by name (`datasets`); of each that is rendered there are `scenes`.
    crops: a sample is one of the reference's stacks, of the first crops' size, and crops of true
    ones; None leaves them to the method.
    qat: the recipe through whose rounding the student learns; None for none.
    learn_from: `both`, the reference's stacks and true ones, or one of them (`LEARN_FROM`).
    """

    minutes: float = 1.0
    steps: int | None = None
    from_scratch: bool = False
    preset: str | None = None
    method: str = "regression"
    sources: tuple[str, ...] = (SYNTHETIC,)
    scenes: int = SCENES
    crops: tuple[Crops, ...] | None = None
    max_targets: int = MOST_TARGETS
    learning_rate: float | None = None
    qat: str | None = None
    learn_from: str = BOTH
    seed: int = 0

    @property
    def rate(self) -> float:
        """The peak learning rate: gentle from a warm start."""
        method = get_method(self.method)
        return self.learning_rate or (method.scratch_rate if self.from_scratch else method.rate)

    @property
    def parts(self) -> tuple[Crops, ...]:
        """The crops to take."""
        return self.crops or get_method(self.method).crops

    @property
    def schedule(self) -> Schedule:
        """Of the training, after the reference is sampled."""
        minutes = self.minutes * (1 - SAMPLING_SHARE)
        schedule = Schedule(minutes, learning_rate=self.rate, log_every=1)
        return schedule if self.steps is None else replace(schedule, steps=self.steps)


def distill_run(
    out: Path,
    reference: str = "default",
    start: Path | None = None,
    photos: Sequence[Path] | None = None,
    stacks: Pixels | None = None,
    settings: Distillation | None = None,
    anew: bool = False,
) -> dict[str, Any]:
    """Distil `reference` and write `out`/student (`out`/reference, where the method's result is
    one), loss.png and training/.

    Starts from the student folder `start` (None: the shipped one) unless `from_scratch`. Learns
    from the reference's stacks of `photos` (None: the bundled ones) and from true stacks, uint8
    [N,9,3,H,W] (None: those of `settings.sources`). The reference smooths what it guesses, so in
    pixels its stacks are compared at a quarter of their size, and with a fifth of the weight of
    true ones; from those alone it learns at full size. With 0 minutes the start is copied. It is
    kept, too, where training lowers PSNR on held-out targets, unless the method trades PSNR for
    looks. An interrupted distillation goes on from its checkpoint in `out`, unless `anew`. Under
    `accelerate launch` all processes call this, share the sampling and each step, and the main one
    writes. Returns a summary.

    With `qat` the student is called, trained and scored through a recipe's rounding.

    Raises UserError, before anything is sampled, for a start or a reference that cannot be loaded
    or does not fit, for stacks of mixed sizes, and for a checkpoint in `out` of other settings.
    """
    settings = settings or Distillation()
    start = start or SHIPPED_WEIGHTS
    if anew or settings.minutes <= 0:
        with main_process_first() as is_main:
            if is_main:
                shutil.rmtree(out / TRAINING, ignore_errors=True)
    if settings.minutes > 0:
        summary = _train(out, reference, start, photos, stacks, settings)
    else:
        if not get_method(settings.method).student:
            raise UserError(f"0 minutes leave nothing to {settings.method}: give it some")
        load_student(start)  # a broken folder is refused before anything is written
        summary = {"minutes": 0, "start_sha256": sha256(start)}
    with main_process_first() as is_main:
        if is_main:
            if settings.minutes <= 0:
                (out / "loss.png").unlink(missing_ok=True)
                _copy(start, out / "student")
            write_json(out / "distill.json", summary)
    return summary


def _train(
    out: Path,
    reference: str,
    start: Path,
    photos: Sequence[Path] | None,
    stacks: Pixels | None,
    settings: Distillation,
) -> dict[str, Any]:
    method, crops = get_method(settings.method), settings.parts
    torch.manual_seed(settings.seed)
    if settings.qat is not None and not method.student:
        raise UserError(f"{method.name} trains no student that --qat could round: leave it out")
    if settings.learn_from not in LEARN_FROM:
        raise UserError(
            f"nothing to learn from {settings.learn_from}: choose {', '.join(LEARN_FROM)}"
        )
    taught = settings.learn_from != STACKS
    student = _start(start, settings)
    if stacks is not None:
        check_size(stacks.shape, crops)
    elif method.student:
        check_crops(student, crops)
    size = student.photo_size if method.student else 2 * (max(part.size for part in crops),)
    rendered = stacks is None and settings.learn_from != REFERENCE
    sources = open_stacks(settings.sources, _request(settings, size)) if rendered else []
    content = _content(reference, photos)
    about = {
        "stacks": list(settings.sources) if stacks is None else fingerprint(stacks),
        "scenes": settings.scenes if stacks is None else len(stacks),
        "content of stacks": key_of(sources=[source.key for source in sources]),
    }
    config = {**_config(content, student, start, settings), **about}
    check_config(out / TRAINING / FILE, config)
    files = None if photos is None else _pixels(photos, crops[0].size)
    teacher = load_reference(reference)
    check_teacher(teacher)
    learner = method.prepare(teacher, student)
    if settings.qat is not None and isinstance(learner, StudentLearner):
        inputs = calibration(student.photo_size, photos)
        learner.rounded = rounded(student, get_recipe(settings.qat), inputs)
    sampling = learner.targets(teacher)
    if rendered:
        stacks = true_stacks(sources, out, size)
    if taught or stacks is None:
        key = _targets_key(content, settings)
        samples = _samples(teacher, files, out, key, sampling, settings)
        count = max(1, int(HELD_OUT_SHARE * len(samples)))
        held_out, teach = samples[:count], samples[count:] or samples
    else:
        held_out, stacks = held_out_stacks(stacks)
        teach = []
    learner.eval()
    before = score(learner, held_out)
    trainer = Trainer(learner.train(), settings.schedule, out / TRAINING, settings.seed, config)
    resume(trainer, "distilling")
    learner.average = trainer.average
    true = None if settings.learn_from == REFERENCE else stacks
    trainer.run(_task(learner, teach, true, method, crops, trainer), "distilling")
    trainer.load_average()
    after = score(learner.cpu().eval(), held_out)
    worse = method.student and method.by_psnr and not settings.from_scratch and after < before
    kept = "start" if worse else "trained"
    if not worse:
        learner.save(out / learner.result)
    if trainer.is_main:
        if worse:
            _copy(start, out / learner.result)
        loss_plot(out / TRAINING / LOG, out / "loss.png")
        against = f"{reference} on held-out photos" if taught else "held-out stacks"
        console.print(
            f"distilled {trainer.step} steps from {settings.learn_from}: {before:.2f} → "
            f"{after:.2f} dB against {against}, kept: {kept}"
        )
    return {
        "minutes": settings.minutes if math.isfinite(settings.minutes) else None,
        "method": method.name,
        "reference": reference,
        "qat": settings.qat,
        "learn_from": settings.learn_from,
        "from_scratch": settings.from_scratch,
        "targets": len(teach),
        "held_out": len(held_out),
        "steps": trainer.step,
        "before_db": round(before, 3),
        "after_db": round(after, 3),
        "kept": kept,
    }


def _start(start: Path, settings: Distillation) -> RefocusStudent:
    if settings.from_scratch:
        return build_student(settings.preset or "tiny")
    student = load_student(start)
    if settings.preset is not None:
        check_preset(student, settings.preset, start)
    return student


def _config(
    content: Mapping[str, Any],
    student: RefocusStudent,
    start: Path,
    settings: Distillation,
) -> dict[str, Any]:
    """What a checkpoint has to agree with, beside the true stacks."""
    method, photos = get_method(settings.method), content["photos"]
    config: dict[str, Any] = {
        "method": method.name,
        "reference": content["reference"],
        "photos": "bundled" if photos is None else f"{len(photos)} ({key_of(photos=photos)[:12]})",
        "crops": [asdict(part) for part in settings.parts],
        "rate": settings.rate,
        "seed": settings.seed,
        "learn from": settings.learn_from,
        "qat": None if settings.qat is None else fields_of(get_recipe(settings.qat)),
    }
    if not method.student:
        return config
    sizes = {f"student's {k}": v for k, v in student.config.items() if not k.startswith("_")}
    return {**config, **sizes, "start": None if settings.from_scratch else sha256(start)}


def _request(settings: Distillation, size: tuple[int, int]) -> Request:
    return Request(settings.scenes, size)


def _samples(
    teacher: ReferencePipeline,
    photos: Sequence[Pixels] | None,
    out: Path,
    key: str,
    sampling: Sampling,
    settings: Distillation,
) -> list[Sample]:
    """The teacher's stacks. A training that goes on takes as many as it began with."""
    taken, count, minutes = out / TRAINING / TAKEN, settings.max_targets, settings.minutes
    if (out / TRAINING / FILE).exists() and taken.exists():
        count, minutes = read_json(taken)["count"], math.inf
    files = teacher_targets(
        teacher,
        train_photos() if photos is None else photos,
        out / "targets" / key,
        count,
        minutes * SAMPLING_SHARE,
        settings.parts[0].size,
        settings.seed,
        sampling,
    )
    with main_process_first() as is_main:
        if is_main:
            write_json(taken, {"count": len(files)})
    return [load_target(path) for path in files]


def _task(
    learner: Learner,
    teach: Sequence[Sample],
    stacks: Pixels | None,
    method: Method,
    crops: Sequence[Crops],
    trainer: Trainer,
) -> Task:
    """Samples of the teacher's stacks, true ones, or both, each with the learner's own noise."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        size = current(crops, trainer.progress).size
        parts = [sample_batch(teach, 1, generator)] if teach else []
        if stacks is not None:
            parts.append(true_batch(stacks, method.true_samples, size, generator))
        drawn: list[Tensor] = []
        for part in parts:
            noise = [learner.noise(stack[None], generator) for stack in part[2]]
            drawn += [*part, *map(torch.cat, zip(*noise, strict=True))]
        return tuple(drawn)

    def losses(*batch: Tensor) -> dict[str, Tensor]:
        if not teach or stacks is None:
            return learner.losses(*batch)
        half = len(batch) // 2
        taught = learner.losses(*batch[:half], pool=TEACHER_POOL)
        true = learner.losses(*batch[half:])
        told = {f"teacher_{n}": v for n, v in taught.items() if n in ("psnr_db", "mse")}
        return {**true, **told, "loss": TEACHER_WEIGHT * taught["loss"] + true["loss"]}

    return Task(draw, losses, lambda: current(crops, trainer.progress).batch)


def true_stacks(sources: Sequence[Source], out: Path, size: tuple[int, int]) -> Pixels:
    """uint8 [N,9,3,H,W] of the sources, kept in `out`/targets/true; size is (H, W)."""
    with main_process_first():
        return cache_sources(out / "targets" / "true", sources, size).pixels


def _content(reference: str, photos: Sequence[Path] | None) -> dict[str, Any]:
    """Hashes of the reference and of each photo; a Hub id stands for itself."""
    return {
        "reference": "+".join(map(sha256, find_places(reference).folders)) or reference,
        "photos": None if photos is None else [sha256(path) for path in photos],
    }


def held_out_stacks(stacks: Pixels) -> tuple[list[Sample], Pixels]:
    """Whole stacks of uint8 [N,9,3,H,W] to score on, and the others to learn from; one is both."""
    count = min(FRAMES, max(1, int(HELD_OUT_SHARE * len(stacks))))
    frames = from_uint8(stacks[:count], planar=True)
    chosen = [Sample(stack[n][None], n, stack, n) for n, stack in enumerate(frames)]
    return chosen, stacks[count:] if len(stacks) > 1 else stacks


def _targets_key(content: Mapping[str, Any], settings: Distillation) -> str:
    """Hash of what the targets depend on."""
    return key_of(
        **content,
        crop=settings.parts[0].size,
        seed=settings.seed,
        student=get_method(settings.method).student,
    )


@torch.no_grad()
def score(learner: Learner, samples: Sequence[Sample]) -> float:
    """Mean PSNR (dB) of the learner against the targets' stacks, at the size they are compared."""
    values = []
    for sample in samples:
        made, target = learner.refocus(sample.photo, sample.position, sample.seed), sample.stack
        values.append(psnr(pooled(made[None], TEACHER_POOL), pooled(target[None], TEACHER_POOL)))
    return float(np.mean(values))


def _pixels(photos: Sequence[Path], crop: int) -> list[Pixels]:
    """Photos as uint8 [H,W,3]; those smaller than a crop are left out, saying so."""
    pixels = [np.asarray(load_photo(path)) for path in photos]
    large = [p for p in pixels if min(p.shape[:2]) >= crop]
    if not large:
        raise UserError(f"no photo is at least {crop} pixels on both sides: name larger ones")
    if len(large) < len(pixels) and process_state().is_main_process:
        console.print(f"{len(pixels) - len(large)} photos are smaller than {crop} pixels: left out")
    return large


def _copy(start: Path, target: Path) -> None:
    with write_atomic(target) as scratch:
        shutil.copytree(start, scratch)
