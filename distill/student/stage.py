"""The distill stage: reference, photos and a starting student in; the method's result out."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketfocus.data.scenes import train_photos
from pocketfocus.data.stacks import cache_sources
from pocketfocus.distill.student.options import REFERENCE, SAMPLING_SHARE, STACKS, Distillation
from pocketfocus.distill.student.plan import Plan, check_reference, make_plan
from pocketfocus.distill.student.regression import OneStepTrainer, pooled
from pocketfocus.distill.student.samples import Material, Sample, sample_batch, split, true_batch
from pocketfocus.distill.student.teacher_stacks import (
    TeacherStacks,
    load_photos,
    load_sample,
    sample_teacher_stacks,
)
from pocketfocus.distill.student.trainer import StudentTrainer
from pocketfocus.distill.train.checkpoint import FILE, check_config
from pocketfocus.distill.train.crops import Pixels
from pocketfocus.distill.train.distributed import main_process_first
from pocketfocus.distill.train.loop import Task, Trainer
from pocketfocus.distill.train.plot import loss_figure, save
from pocketfocus.distill.train.run_log import LOG
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import load_student
from pocketfocus.quantize.recipes import get_recipe
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, sha256, write_atomic, write_json
from pocketfocus.run.metrics import psnr
from pocketfocus.run.progress import console

TEACHER_POOL, TEACHER_WEIGHT = 4, 0.2  # pixels, and against true stacks; see `distill_run`
RECORD = "distill.json"
RECORDED = ("method", "reference", "qat", "learn_from", "from_scratch")  # options in it
TRAINING = "training"  # the folder of the checkpoint, train.jsonl and TensorBoard's files
STACKS_FOLDER = "targets"  # of teacher stacks by their key, and `true`
COUNT_FILE = "targets.json"  # in TRAINING: how many teacher stacks the training began with


def distill_run(out: Path, options: Distillation, anew: bool = False) -> None:
    """Distil and write `out`/student (`out`/reference, where the method's result is one),
    loss.png, distill.json and training/.

    The reference smooths what it guesses, so in pixels its stacks are compared at a quarter of
    their size, and with a fifth of the weight of true ones; from those alone a student learns at
    full size. With 0 minutes the start is copied. It is kept, too, where training lowers PSNR on
    held-out stacks, unless the method trades PSNR for looks. An interrupted distillation goes on
    from its checkpoint in `out`, unless `anew`. Under `accelerate launch` all processes call this,
    share the sampling and each step, and the main one writes.

    With `qat` the student is called, trained and scored through a recipe's rounding.

    Raises UserError, before anything is sampled, for a start or a reference that cannot be loaded
    or does not fit, for stacks of mixed sizes, and for a checkpoint in `out` of other options.
    """
    nothing = options.minutes <= 0
    if anew or nothing:
        with main_process_first() as is_main:
            if is_main:
                shutil.rmtree(out / TRAINING, ignore_errors=True)
    if nothing:
        _take_start(out, options)
    else:
        _train(out, options)


def _take_start(out: Path, options: Distillation) -> None:
    """Copy the start, which is loaded first, so that a broken one is refused."""
    if not options.chosen.student:
        raise UserError(f"0 minutes leave nothing to {options.method}: give it some")
    start = options.start_folder
    load_student(start)
    with main_process_first() as is_main:
        if is_main:
            (out / "loss.png").unlink(missing_ok=True)
            _copy(start, out / "student")
            write_json(out / RECORD, {"minutes": 0, "start_sha256": sha256(start)})


def _train(out: Path, options: Distillation) -> None:
    torch.manual_seed(options.seed)
    plan, folder = make_plan(options), out / TRAINING
    check_config(folder / FILE, plan.config)
    crop, photos = options.parts[0].size, options.photos
    pixels = None if photos is None else load_photos(photos, crop)
    reference = load_reference(options.reference)
    check_reference(reference)
    student = options.chosen.prepare(reference, plan.student)
    if options.qat is not None and isinstance(student, OneStepTrainer):
        student.round(get_recipe(options.qat), photos)
    material = _material(plan, reference, student, pixels, out)
    student.eval()
    before = score(student, material.held_out)
    trainer = Trainer(student.train(), options.schedule, folder, options.seed, plan.config)
    trainer.resume("distilling")
    student.average = trainer.ema.average
    trainer.run(_task(student, material, options), "distilling")
    trainer.ema.load()
    after = score(student.cpu().eval(), material.held_out)
    compares = options.chosen.student and options.chosen.by_psnr and not options.from_scratch
    kept = "start" if compares and after < before else "trained"
    if kept == "trained":
        student.save(out / student.result)
    record = {
        "minutes": options.minutes if math.isfinite(options.minutes) else None,
        **{name: getattr(options, name) for name in RECORDED},
        "targets": len(material.teacher_stacks),
        "held_out": len(material.held_out),
        "steps": trainer.step,
        "before_db": round(before, 3),
        "after_db": round(after, 3),
        "kept": kept,
    }
    taught = options.learn_from != STACKS
    against = f"{options.reference} on held-out photos" if taught else "held-out stacks"
    with main_process_first() as is_main:
        if is_main:
            if kept == "start":
                _copy(options.start_folder, out / student.result)
            save(loss_figure(folder / LOG), out / "loss.png")
            console.print(
                f"distilled {trainer.step} steps from {options.learn_from}: {before:.2f} → "
                f"{after:.2f} dB against {against}, kept: {kept}"
            )
            write_json(out / RECORD, record)


def _material(
    plan: Plan,
    reference: ReferencePipeline,
    student: StudentTrainer,
    photos: Sequence[Pixels] | None,
    out: Path,
) -> Material:
    """Gather true stacks and sample teacher stacks, as far as they are learned from."""
    options, true = plan.options, None
    if options.learn_from != REFERENCE:
        with main_process_first():
            true = cache_sources(out / STACKS_FOLDER / "true", plan.sources, plan.size).pixels
    if options.learn_from == STACKS:
        return split([], true)
    count, minutes = options.max_teacher_stacks, options.minutes * SAMPLING_SHARE
    counted = out / TRAINING / COUNT_FILE
    if (out / TRAINING / FILE).exists() and counted.exists():  # it goes on with what it began with
        count, minutes = read_json(counted)["count"], math.inf
    wanted = TeacherStacks(
        out / STACKS_FOLDER / plan.key,
        count,
        minutes,
        options.parts[0].size,
        options.seed,
        student.teacher_sampling(reference),
    )
    files = sample_teacher_stacks(reference, photos or train_photos(), wanted)
    with main_process_first() as is_main:
        if is_main:
            write_json(counted, {"count": len(files)})
    return split([load_sample(path) for path in files], true)


def _task(student: StudentTrainer, material: Material, options: Distillation) -> Task:
    """Make the task of teacher stacks, true ones, or both, each with the student's own noise."""
    teach, stacks = material.teacher_stacks, material.true_stacks

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        parts = [sample_batch(teach, 1, generator)] if teach else []
        if stacks is not None:
            parts.append(true_batch(stacks, options.chosen.true_samples, size, generator))
        drawn: list[Tensor] = []
        for part in parts:
            noise = [student.noise(stack[None], generator) for stack in part[2]]
            drawn += [*part, *map(torch.cat, zip(*noise, strict=True))]
        return tuple(drawn)

    def losses(*batch: Tensor) -> dict[str, Tensor]:
        if not teach or stacks is None:
            return student.losses(*batch)
        half = len(batch) // 2
        taught = student.losses(*batch[:half], pool=TEACHER_POOL)
        true = student.losses(*batch[half:])
        noted = {f"teacher_{n}": v for n, v in taught.items() if n in ("psnr_db", "mse")}
        return {**true, **noted, "loss": TEACHER_WEIGHT * taught["loss"] + true["loss"]}

    return Task(draw, losses, options.parts)


@torch.no_grad()
def score(student: StudentTrainer, samples: Sequence[Sample]) -> float:
    """Measure the mean PSNR (dB) against the samples' stacks, at the size they are compared."""
    values = []
    for sample in samples:
        made, stack = student.refocus(sample.photo, sample.position, sample.seed), sample.stack
        values.append(psnr(pooled(made[None], TEACHER_POOL), pooled(stack[None], TEACHER_POOL)))
    return float(np.mean(values))


def _copy(start: Path, target: Path) -> None:
    with write_atomic(target) as scratch:
        shutil.copytree(start, scratch)
