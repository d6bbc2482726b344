"""The distill stage: reference, photos and a starting student in; a student folder out."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketfocus.datasets import SYNTHETIC, Request, open_source
from pocketfocus.distill.checkpoint import FILE, check_config
from pocketfocus.distill.crops import Crops, check_size, current
from pocketfocus.distill.journal import LOG
from pocketfocus.distill.loop import Schedule, Task, Trainer
from pocketfocus.distill.methods import get_method
from pocketfocus.distill.plot import loss_plot
from pocketfocus.distill.reference import fingerprint, resume
from pocketfocus.distill.regression import pooled
from pocketfocus.distill.targets import (
    Pixels,
    Sample,
    load_target,
    sample_batch,
    teacher_targets,
    true_batch,
)
from pocketfocus.errors import UserError
from pocketfocus.files import key_of, sha256, write_atomic, write_json
from pocketfocus.images import load_photo
from pocketfocus.loading import DEFAULT_WEIGHTS, load_reference
from pocketfocus.metrics import psnr
from pocketfocus.optics import FRAMES
from pocketfocus.progress import console
from pocketfocus.scenes import train_photos
from pocketfocus.stacks import cache_sources
from pocketfocus.student import SHIPPED_WEIGHTS, RefocusStudent, build_student, load_student

SAMPLING_SHARE = 0.2  # of the minutes go into sampling the reference, at most
MOST_TARGETS = 600
HELD_OUT_SHARE = 0.2  # of the targets choose between the weights before and after
SCENES = 24
TRUE_SAMPLES = 3  # for each of the reference's
TEACHER_POOL, TEACHER_WEIGHT = 4, 0.2  # pixels, and against true stacks; see `distill_run`
# How blur looks is local: small crops first show more scenes a minute; whole pictures show layout.
CROPS = (Crops(0.55, 4, 128), Crops(0.8, 2, 192), Crops(1.0, 1, 256))
TRAINING = "training"  # the folder of the checkpoint, train.jsonl and TensorBoard's files


@dataclass(frozen=True)
class Distillation:
    """How to distil. `minutes` bounds sampling the reference and training together, `steps` the
    training.

    preset: of the student, from scratch.
    sources: of true stacks, by name (`datasets`); of each that is rendered there are `scenes`.
    crops: a sample is one of the reference's stacks, of the first crops' size, and `TRUE_SAMPLES`
    crops of true ones.
    """

    minutes: float = 1.0
    steps: int | None = None
    from_scratch: bool = False
    preset: str = "tiny"
    method: str = "regression"
    sources: tuple[str, ...] = (SYNTHETIC,)
    scenes: int = SCENES
    crops: tuple[Crops, ...] = CROPS
    max_targets: int = MOST_TARGETS
    learning_rate: float | None = None
    seed: int = 0

    @property
    def rate(self) -> float:
        """The peak learning rate: gentle from a warm start."""
        return self.learning_rate or (1e-3 if self.from_scratch else 2e-5)

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
    """Distil `reference` into a student and write `out`/student, loss.png and training/.

    Starts from the student folder `start` (None: the shipped one) unless `from_scratch`. Learns
    from the reference's stacks of `photos` (None: the bundled ones) and, three times as many, from
    true stacks, uint8 [N,9,3,H,W] (None: those of `settings.sources`). The reference smooths what
    it guesses, so its stacks are compared at a quarter of their size and with a fifth of the weight
    of true ones. With 0 minutes the start is copied. The result is never worse than its start on
    held-out targets. An interrupted distillation goes on from its checkpoint in `out`, unless
    `anew`. Returns a summary.

    Raises UserError, before anything is sampled, for a start that cannot be loaded and for a
    checkpoint in `out` of other settings.
    """
    settings = settings or Distillation()
    start = start or SHIPPED_WEIGHTS
    if anew or settings.minutes <= 0:
        shutil.rmtree(out / TRAINING, ignore_errors=True)
    if settings.minutes <= 0:
        load_student(start)  # a broken folder is refused before anything is written
        (out / "loss.png").unlink(missing_ok=True)
        _copy(start, out / "student")
        summary: dict[str, Any] = {"minutes": 0, "start_sha256": sha256(start)}
    else:
        summary = _train(out, reference, start, photos, stacks, settings)
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
    method = get_method(settings.method)
    torch.manual_seed(settings.seed)
    student = build_student(settings.preset) if settings.from_scratch else load_student(start)
    targets = _targets_key(reference, photos, settings)
    config = {
        "student": {k: v for k, v in student.config.items() if not k.startswith("_")},
        "start": None if settings.from_scratch else sha256(start),
        "targets": targets,
        "method": method.name,
        "stacks": list(settings.sources) if stacks is None else fingerprint(stacks),
        "scenes": settings.scenes if stacks is None else len(stacks),
        "crops": [asdict(part) for part in settings.crops],
        "rate": settings.rate,
        "seed": settings.seed,
    }
    check_config(out / TRAINING / FILE, config)
    teacher = load_reference(reference)
    if stacks is None:
        stacks = true_stacks(settings, out, student.photo_size)
    check_size(stacks.shape, settings.crops)
    files = teacher_targets(
        teacher,
        _pixels(photos, settings.crops[0].size),
        out / "targets" / targets,
        settings.max_targets,
        settings.minutes * SAMPLING_SHARE,
        settings.crops[0].size,
        settings.seed,
    )
    samples = [load_target(path) for path in files]
    held_out = max(1, int(HELD_OUT_SHARE * len(samples)))
    teach = samples[held_out:] or samples
    before = score(student, samples[:held_out])

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        size = current(settings.crops, trainer.progress).size
        true = true_batch(stacks, TRUE_SAMPLES, size, generator)
        return *sample_batch(teach, 1, generator), *true

    def losses(*batch: Tensor) -> dict[str, Tensor]:
        photos, positions, frames, *true_samples = batch
        taught = method.losses(student, photos, positions, frames, pool=TEACHER_POOL)
        photos, positions, frames = true_samples
        true = method.losses(student, photos, positions, frames)
        return {
            **true,
            "loss": TEACHER_WEIGHT * taught["loss"] + true["loss"],
            "teacher_psnr_db": taught["psnr_db"],
        }

    trainer = Trainer(student.train(), settings.schedule, out / TRAINING, settings.seed, config)
    resume(trainer, "distilling")
    batch = lambda: current(settings.crops, trainer.progress).batch  # noqa: E731
    trainer.run(Task(draw, losses, batch), "distilling")
    trainer.load_average()
    after = score(student.cpu().eval(), samples[:held_out])
    kept = "trained" if settings.from_scratch or after >= before else "start"
    if kept == "start":
        _copy(start, out / "student")
    else:
        save_student(student, out / "student")
    loss_plot(out / TRAINING / LOG, out / "loss.png")
    console.print(
        f"distilled {trainer.step} steps on {len(teach)} targets of {reference}: "
        f"{before:.2f} → {after:.2f} dB against the reference on held-out photos, kept: {kept}"
    )
    return {
        "minutes": settings.minutes,
        "method": method.name,
        "reference": reference,
        "from_scratch": settings.from_scratch,
        "targets": len(teach),
        "held_out": held_out,
        "steps": trainer.step,
        "before_db": round(before, 3),
        "after_db": round(after, 3),
        "kept": kept,
    }


def true_stacks(settings: Distillation, out: Path, size: tuple[int, int]) -> Pixels:
    """uint8 [N,9,3,H,W] of the settings' sources, kept in `out`/targets/true; size is (H, W)."""
    sources = [open_source(spec, Request(settings.scenes, size)) for spec in settings.sources]
    return cache_sources(out / "targets" / "true", sources, size).pixels


def save_student(student: RefocusStudent, folder: Path) -> None:
    """Write config.json and weights, fp16 safetensors, atomically."""
    with write_atomic(folder) as scratch:
        copy.deepcopy(student).half().save_pretrained(scratch, safe_serialization=True)


def _targets_key(reference: str, photos: Sequence[Path] | None, settings: Distillation) -> str:
    """Hash of what the targets depend on; a Hub id stands for itself."""
    folder = DEFAULT_WEIGHTS if reference == "default" else Path(reference)
    return key_of(
        reference=sha256(folder) if folder.is_dir() else reference,
        photos=None if photos is None else [sha256(path) for path in photos],
        crop=settings.crops[0].size,
        seed=settings.seed,
    )


@torch.no_grad()
def score(student: RefocusStudent, samples: Sequence[Sample]) -> float:
    """Mean PSNR (dB) of the student against the targets' stacks, at the size they are compared."""
    student.eval()
    values = []
    for sample in samples:
        one_hot = torch.nn.functional.one_hot(torch.tensor([sample.position]), FRAMES).float()
        made, target = student(sample.photo, one_hot), sample.stack
        values.append(psnr(pooled(made[None], TEACHER_POOL), pooled(target[None], TEACHER_POOL)))
    return float(np.mean(values))


def _pixels(photos: Sequence[Path] | None, crop: int) -> list[Pixels]:
    """Photos as uint8 [H,W,3]; those smaller than a crop are left out, saying so."""
    if photos is None:
        return train_photos()
    pixels = [np.asarray(load_photo(path)) for path in photos]
    large = [p for p in pixels if min(p.shape[:2]) >= crop]
    if not large:
        raise UserError(f"no photo is at least {crop} pixels on both sides: name larger ones")
    if len(large) < len(pixels):
        console.print(f"{len(pixels) - len(large)} photos are smaller than {crop} pixels: left out")
    return large


def _copy(start: Path, target: Path) -> None:
    with write_atomic(target) as scratch:
        shutil.copytree(start, scratch)
