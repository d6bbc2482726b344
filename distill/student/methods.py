"""The distillation methods: one module each, one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pocketfocus.distill.student.adversarial import Adversarial
from pocketfocus.distill.student.consistency import Consistency
from pocketfocus.distill.student.prior import PriorTrainer
from pocketfocus.distill.student.regression import Regression
from pocketfocus.distill.student.trainer import StudentTrainer
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import RefocusStudent
from pocketfocus.run.errors import UserError

# How blur looks is local: smaller crops first show more scenes a minute; larger ones show layout.
CROPS = (Crops(0.6, 16, 128), Crops(1.0, 10, 160))
LAYOUTS = (Crops(1.0, 12, 256),)  # where things lie, whole layouts tell
SMALL_CROPS = (Crops(1.0, 1, 128),)  # a step of `consistency` evaluates UNets five times a sample
WARM = Schedule(learning_rate=2e-5, log_every=1)  # gentle
FASTER = replace(WARM, learning_rate=1e-4)
PRIOR = replace(WARM, learning_rate=5e-4, warmup_steps=100, ema_decay=0.99)
ADAMW = replace(WARM, learning_rate=1e-3)
MUON = Schedule(
    optimizer="muon",
    learning_rate=1.2e-3,
    warmup_steps=100,
    decay=0.4,
    clip_norm=4.0,  # usual are 2 to 2.5
    ema_decay=0.9995,
    log_every=1,
)
# From weights that have learned, for an hour or so: nothing is gained at a constant rate.
SITTING = replace(MUON, learning_rate=8e-4, decay=1.0, ema_decay=0.998)


def with_optimizer(
    schedule: Schedule, optimizer: str | None, from_scratch: bool = False
) -> Schedule:
    """Return a schedule, or where it steps with another optimizer, that optimizer's own: Muon's at
    full pace, AdamW's gentle one. UserError for an unknown name."""
    if optimizer in (None, schedule.optimizer):
        return schedule
    others = {each.optimizer: each for each in (WARM, MUON if from_scratch else SITTING)}
    if optimizer not in others:
        raise UserError(f"unknown optimizer {optimizer}: choose one of {', '.join(others)}")
    return others[optimizer]


@dataclass(frozen=True)
class Method:
    """A way to distil: what it trains, a sentence with its paper, and how it is trained, from a
    student's weights or from scratch."""

    name: str
    prepare: Callable[[ReferencePipeline, RefocusStudent], StudentTrainer]  # of the start
    about: str
    warm: Schedule = WARM
    scratch: Schedule = ADAMW
    crops: tuple[Crops, ...] = CROPS
    true_samples: int = 3  # for each teacher stack
    detail: bool = False  # whether the gain of finer detail is trained at the end
    student: bool = True  # what learns is a student of this package
    qat: bool = True  # and can be called through a recipe's rounding
    by_psnr: bool = True  # a start is kept when training lowers PSNR: it is not traded for looks


METHODS = {
    method.name: method
    for method in (
        Method(
            "regression",
            Regression,
            "one step, zero noise, pixel losses (2409.11355)",
            scratch=MUON,
            detail=True,
        ),
        Method(
            "adversarial",
            Adversarial,
            "regression and a hinge GAN on the reference's encoder (2311.17042)",
            warm=FASTER,
            by_psnr=False,
        ),
        Method(
            "prior",
            PriorTrainer,
            "the prior of depth alone, for photos of unknown position; pictures stay",
            warm=PRIOR,
            scratch=PRIOR,
            crops=LAYOUTS,
            qat=False,
            by_psnr=False,
        ),
        Method(
            "consistency",
            lambda reference, _: Consistency(reference),
            "the reference's UNet in 1 to 4 steps, guidance inside (2303.01469, 2310.04378)",
            warm=FASTER,
            crops=SMALL_CROPS,
            true_samples=1,
            student=False,
            qat=False,
        ),
    )
}


def get_method(name: str) -> Method:
    """Look up the method called `name`; UserError naming the known ones otherwise."""
    if name not in METHODS:
        raise UserError(f"unknown method {name}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
