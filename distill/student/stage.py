"""The distill stage: reference, photos and a starting student in; the method's result out."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketfocus.data.scenes import train_photos
from pocketfocus.data.stacks import cache_sources
from pocketfocus.distill.student.detail import train_detail
from pocketfocus.distill.student.options import BOTH, SAMPLING_SHARE, STACKS, Distillation
from pocketfocus.distill.student.plan import Plan, make_plan
from pocketfocus.distill.student.regression import OneStepTrainer, pooled
from pocketfocus.distill.student.samples import (
    Batch,
    Material,
    Sample,
    sample_batch,
    split,
    true_batch,
)
from pocketfocus.distill.student.teacher_stacks import (
    Pool,
    SampleFiles,
    TeacherStacks,
    load_photos,
    sample_teacher_stacks,
)
from pocketfocus.distill.student.trainer import StudentTrainer
from pocketfocus.distill.train.checkpoint import FILE, check_config
from pocketfocus.distill.train.distributed import (
    alone_together,
    can_compile,
    main_process_first,
    process_state,
)
from pocketfocus.distill.train.loop import Task, Trainer
from pocketfocus.distill.train.plot import loss_figure, save
from pocketfocus.distill.train.run_log import LOG
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import load_student
from pocketfocus.quantize.recipes import get_recipe
from pocketfocus.run.cache import Kept
from pocketfocus.run.constants import MULTIPLE, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, sha256, write_atomic, write_json
from pocketfocus.run.metrics import psnr
from pocketfocus.run.progress import console

TEACHER_POOL, TEACHER_WEIGHT = 4, 0.2  # pixels, and against true stacks; see `distill_run`
RECORD = "distill.json"
RECORDED = ("method", "reference", "qat", "learn_from", "from_scratch")  # options in it
TRAINING = "training"  # the folder of the checkpoint, train.jsonl and TensorBoard's files
STACKS_FOLDER = "targets"  # of teacher stacks by their key, and true ones by their size
DETAIL_SHARE = 0.1  # of the minutes, or as many steps more, train the gain of finer detail
SCORED = 8  # held-out stacks, where a result is kept whatever its score
COMPILED_MINUTES = 5.0  # below which compiling takes longer than it saves
BEGUN_FILE = "begun.json"  # in TRAINING: with what it was begun
COUNT_FILE = "targets.json"  # in TRAINING: how many teacher stacks the training began with


def distill_run(out: Path, options: Distillation, begun_with: str = "") -> None:
    """Distil and write `out`/student (`out`/reference, where the method's result is one),
    loss.png, distill.json and training/.

    The reference smooths what it guesses, so in pixels its stacks are compared at a quarter of
    their size, and with a fifth of the weight of true ones; from those alone a student learns at
    full size. With 0 minutes the start is copied. It is kept, too, where training lowers PSNR on
    held-out stacks, unless the method trades PSNR for looks. An interrupted distillation goes on
    from its checkpoint in `out`; with `begun_with`, the key of all that it depends on, only one
    that was begun with the same, and any other starts anew. Under `accelerate launch` all processes
    call this, share the sampling and each step, and the main one writes; others are refused.

    With `qat` the student is called, trained and scored through a recipe's rounding.

    Raises UserError, before anything is sampled, for a start or a reference that cannot be loaded
    or does not fit, for stacks of mixed sizes, and for a checkpoint in `out` of other options.
    """
    nothing = options.minutes <= 0
    with alone_together(out / TRAINING, "distill"):
        with main_process_first() as is_main:
            if is_main and (nothing or begun_with):
                _forget_others(out / TRAINING, "" if nothing else begun_with)
        if nothing:
            _take_start(out, options)
        else:
            _train(out, options)


def _forget_others(training: Path, key: str) -> None:
    """Delete a training unless it was begun with this key, which is noted; UserError for one that
    nothing was noted of: `distill` began it, and may have gone on for hours."""
    begun = Kept(training / BEGUN_FILE, key)
    if not begun.fields:
        if (training / FILE).exists() and not begun.path.exists():
            raise UserError(
                f"{training} holds a training of `pocketfocus distill`, which would be lost: name "
                "another --out, or delete that folder"
            )
        for entry in training.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if key:
            begun.save(begun=True)


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
    student = options.chosen.prepare(reference, plan.student)
    if not options.from_scratch:
        student.keep_known()
    if options.qat is not None and isinstance(student, OneStepTrainer):
        student.round(get_recipe(options.qat), photos)
    material = _material(plan, reference, student, pixels, out)
    student.eval()
    pool = TEACHER_POOL if options.learn_from == BOTH else 1
    scored = material.held_out if options.chosen.student else material.held_out[:SCORED]
    before, schedule = score(student, scored, pool), options.schedule
    if plan.large is not None:
        schedule = replace(schedule, minutes=schedule.minutes * (1 - DETAIL_SHARE))
    trainer = Trainer(student.train(), schedule, folder, options.seed, plan.config)
    if options.minutes >= COMPILED_MINUTES and can_compile():
        student.hasten()
    trainer.resume("distilling")
    student.average = trainer.ema.average
    trainer.run(_task(student, material, options), "distilling")
    trainer.ema.load()
    after = score(student.eval(), scored, pool)
    student.cpu()
    compares = options.chosen.student and options.chosen.by_psnr and not options.from_scratch
    kept = "start" if compares and after < before else "trained"
    if kept == "trained":
        _train_detail(plan, student, out)
        student.save(out / student.result)
    scores = {"before_db": round(before, 3), "after_db": round(after, 3), "kept": kept}
    _finish(out, options, material, {"steps": trainer.step, **scores})


def _train_detail(plan: Plan, student: StudentTrainer, out: Path) -> None:
    """Train the gain of finer detail, where there is something to learn it from."""
    if plan.large is None or not isinstance(student, OneStepTrainer):
        return
    options, folder = plan.options, out / STACKS_FOLDER / "large"
    with main_process_first():
        stacks = cache_sources(folder, [plan.large.source], plan.large.size)
    share = DETAIL_SHARE * options.schedule.minutes
    steps = max(1, round(DETAIL_SHARE * options.schedule.steps))
    budget = replace(options.schedule, minutes=share, steps=steps)
    train_detail(student.student, stacks, out / TRAINING / "detail", budget, plan.config)


def _finish(out: Path, options: Distillation, material: Material, facts: dict[str, object]) -> None:
    """Say what came of it, draw the loss and write the record; the main process does."""
    record = {
        "minutes": options.minutes if math.isfinite(options.minutes) else None,
        **{name: getattr(options, name) for name in RECORDED},
        "targets": len(material.teacher_stacks),
        "held_out": len(material.held_out),
        **facts,
    }
    taught = options.learn_from != STACKS
    against = f"{options.reference} on held-out crops" if taught else "held-out stacks"
    with main_process_first() as is_main:
        if is_main:
            if facts["kept"] == "start":
                _copy(options.start_folder, out / "student")
            save(loss_figure(out / TRAINING / LOG), out / "loss.png")
            console.print(
                f"distilled {facts['steps']} steps from {options.learn_from}: "
                f"{facts['before_db']:.2f} → {facts['after_db']:.2f} dB against {against}, "
                f"kept: {facts['kept']}"
            )
            write_json(out / RECORD, record)


def _material(
    plan: Plan,
    reference: ReferencePipeline,
    student: StudentTrainer,
    photos: Pool | None,
    out: Path,
) -> Material:
    """Gather true stacks and sample teacher stacks, as far as they are learned from."""
    options, true = plan.options, []
    for size, sources in plan.sources.items():
        with main_process_first():
            folder = out / STACKS_FOLDER / f"true-{size_text(size)}"
            true.append(cache_sources(folder, sources, size))
    if options.learn_from == STACKS:
        return split([], true, plan.student.multiple if options.chosen.student else MULTIPLE)
    count, minutes = options.max_teacher_stacks, options.minutes * SAMPLING_SHARE
    counted = out / TRAINING / COUNT_FILE
    begun = read_json(counted) if (out / TRAINING / FILE).exists() and counted.exists() else {}
    requested = begun.get("requested", count)
    if begun:  # it goes on with what it began with
        _say_unused(count, requested, begun["count"])
        count, minutes = begun["count"], math.inf
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
            write_json(counted, {"count": len(files), "requested": requested})
    return split(SampleFiles(files), true)


def _say_unused(wanted: int, requested: int, count: int) -> None:
    """Say that a training that goes on keeps the number of teacher stacks that it began with."""
    if wanted != requested and process_state().is_main_process:
        console.print(
            f"it goes on with the {count} teacher stacks that it began with, of --teacher-stacks "
            f"{requested}: {wanted} would be another training, in another --out"
        )


def _task(student: StudentTrainer, material: Material, options: Distillation) -> Task:
    """Make the task of teacher stacks, true ones, or both, each with the student's own noise."""
    teach, stacks = material.teacher_stacks, material.true_stacks
    fields = len(Batch._fields)

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        parts = [sample_batch(teach, 1, generator)] if teach else []
        if stacks:
            count = options.chosen.true_samples if teach else 1
            parts.append(true_batch(stacks, count, size, generator))
        drawn: list[Tensor] = []
        for part in parts:
            noise = [student.noise(images[None], generator) for images in part.images]
            drawn += [*part, *map(torch.cat, zip(*noise, strict=True))]
        return tuple(drawn)

    def learned(drawn: Sequence[Tensor], pool: int = 1) -> dict[str, Tensor]:
        return student.losses(Batch(*drawn[:fields]).floats(), *drawn[fields:], pool=pool)

    def losses(*drawn: Tensor) -> dict[str, Tensor]:
        if not teach or not stacks:
            return learned(drawn)
        half = len(drawn) // 2
        taught, true = learned(drawn[:half], TEACHER_POOL), learned(drawn[half:])
        noted = {f"teacher_{n}": v for n, v in taught.items() if n in ("psnr_db", "mse")}
        return {**true, **noted, "loss": TEACHER_WEIGHT * taught["loss"] + true["loss"]}

    return Task(draw, losses, options.parts)


@torch.no_grad()
def score(student: StudentTrainer, samples: Sequence[Sample], pool: int) -> float:
    """Measure the mean PSNR (dB) against the samples' stacks, at the size they are compared; the
    student is moved to where it trains, and stays there."""
    values, device = [], process_state().device
    student.to(device)
    for sample in samples:
        made = student.refocus(sample.photo.to(device), sample.position, sample.seed).cpu()
        stack = sample.stack
        values.append(psnr(pooled(made[None], pool), pooled(stack[None], pool)))
    return float(np.mean(values))


def _copy(start: Path, target: Path) -> None:
    with write_atomic(target) as scratch:
        shutil.copytree(start, scratch)
