"""The distill stage: reference, photos and a starting student in; a student folder out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketfocus.distill.loop import Schedule, Task, Trainer
from pocketfocus.distill.methods import get_method
from pocketfocus.distill.plot import loss_plot
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
from pocketfocus.stacks import cache_stacks
from pocketfocus.student import SHIPPED_WEIGHTS, RefocusStudent, load_student

TEACHER_SHARE = 0.5  # of the minutes go into sampling the reference, the rest into training
HELD_OUT_SHARE = 0.2  # of the targets choose between the weights before and after
TRUE_SCENES = 24
TEACHER_POOL, TEACHER_WEIGHT = 4, 0.2  # pixels, and against true stacks; see `distill_run`


@dataclass(frozen=True)
class Distillation:
    """How to distil. `minutes` bounds sampling the reference and training together."""

    minutes: float = 1.0
    from_scratch: bool = False
    method: str = "regression"
    crop: int = 128
    batch: int = 4
    max_targets: int = 100_000
    learning_rate: float | None = None
    seed: int = 0

    @property
    def rate(self) -> float:
        """The peak learning rate: gentle from a warm start."""
        return self.learning_rate or (1e-3 if self.from_scratch else 2e-5)


def distill_run(
    out: Path,
    reference: str = "default",
    start: Path | None = None,
    photos: Sequence[Path] | None = None,
    stacks: Pixels | None = None,
    settings: Distillation | None = None,
) -> dict[str, Any]:
    """Distil `reference` into a student and write `out`/student, train.jsonl and loss.png.

    Starts from the student folder `start` (None: the shipped one) unless `from_scratch`. Learns in
    equal parts from the reference's stacks of `photos` (None: the bundled ones) and from true
    stacks, uint8 [N,9,3,H,W] (None: freshly rendered synthetic scenes). The reference's autoencoder
    loses detail that the photo itself still has, so its stacks are compared at a quarter of their
    size and with a fifth of the weight of true ones: with the shipped reference, equal weights cost
    the student 1 dB on real stacks, and 0.5 dB at a quarter of the size. With 0 minutes the start
    is copied. The result is never worse than its start on held-out targets. Returns a summary.
    """
    settings = settings or Distillation()
    start = start or SHIPPED_WEIGHTS
    if settings.minutes <= 0:
        load_student(start)  # a broken folder is refused before anything is written
        for stale in ("train.jsonl", "loss.png"):
            (out / stale).unlink(missing_ok=True)
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
    student = RefocusStudent() if settings.from_scratch else load_student(start)
    teacher = load_reference(reference)
    pixels = _pixels(photos, settings.crop)
    files = teacher_targets(
        teacher,
        pixels,
        out / "targets" / _targets_key(reference, photos, settings),
        settings.max_targets,
        settings.minutes * TEACHER_SHARE,
        settings.crop,
        settings.seed,
    )
    samples = [load_target(path) for path in files]
    held_out = max(1, int(HELD_OUT_SHARE * len(samples)))
    if stacks is None:
        stacks = cache_stacks(
            out / "targets" / "true", range(TRUE_SCENES), (256, 256), train_photos()
        ).pixels

    before = score(student, samples[:held_out])
    trainer = _trainer(student, out, settings)
    teach = samples[held_out:] or samples

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        true = true_batch(stacks, 1, settings.crop, generator)
        return *sample_batch(teach, 1, generator), *true

    def losses(*batch: Tensor) -> dict[str, Tensor]:
        photos, positions, frames, *true_samples = batch
        taught = method.losses(student, photos, positions, frames, pool=TEACHER_POOL)
        photos, positions, frames = true_samples
        true = method.losses(student, photos, positions, frames)
        return {
            "loss": TEACHER_WEIGHT * taught["loss"] + true["loss"],
            "psnr_db": true["psnr_db"],
            "teacher_psnr_db": taught["psnr_db"],
        }

    initial = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    trainer.run(Task(draw, losses, lambda: max(1, settings.batch // 2)), "distilling")
    trainer.load_average()
    after = score(student.cpu().eval(), samples[:held_out])
    kept = "trained" if settings.from_scratch or after >= before else "start"
    if kept == "start":
        student.load_state_dict(initial)
    with write_atomic(out / "student") as scratch:
        student.save_pretrained(scratch, safe_serialization=True)
    loss_plot(out / "train.jsonl", out / "loss.png")
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


def _targets_key(reference: str, photos: Sequence[Path] | None, settings: Distillation) -> str:
    """Hash of what the targets depend on; a Hub id stands for itself."""
    folder = DEFAULT_WEIGHTS if reference == "default" else Path(reference)
    return key_of(
        reference=sha256(folder) if folder.is_dir() else reference,
        photos=None if photos is None else [sha256(path) for path in photos],
        crop=settings.crop,
        seed=settings.seed,
    )


def _trainer(student: RefocusStudent, out: Path, settings: Distillation) -> Trainer:
    (out / "train.jsonl").unlink(missing_ok=True)
    schedule = Schedule(
        minutes=settings.minutes * (1 - TEACHER_SHARE), learning_rate=settings.rate, log_every=1
    )
    return Trainer(student.train(), schedule, out, settings.seed, resumable=False)


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
