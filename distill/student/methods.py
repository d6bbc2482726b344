"""The distillation methods: one module each, one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pocketfocus.distill.student.adversarial import Adversarial
from pocketfocus.distill.student.consistency import Consistency
from pocketfocus.distill.student.regression import Regression
from pocketfocus.distill.student.trainer import StudentTrainer
from pocketfocus.distill.train.crops import Crops
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import RefocusStudent
from pocketfocus.run.errors import UserError

# How blur looks is local: small crops first show more scenes a minute; whole pictures show layout.
CROPS = (Crops(0.55, 4, 128), Crops(0.8, 2, 192), Crops(1.0, 1, 256))
SMALL_CROPS = (Crops(1.0, 1, 128),)  # a step of `consistency` evaluates UNets five times a sample


@dataclass(frozen=True)
class Method:
    """A way to distil: what it trains, a sentence with its paper, and how it is trained."""

    name: str
    prepare: Callable[[ReferencePipeline, RefocusStudent], StudentTrainer]  # of the start
    about: str
    rate: float = 2e-5  # the peak from a warm start
    scratch_rate: float = 1e-3
    crops: tuple[Crops, ...] = CROPS
    true_samples: int = 3  # for each teacher stack
    student: bool = True  # what learns is a student of this package
    by_psnr: bool = True  # a start is kept when training lowers PSNR: it is not traded for looks


METHODS = {
    method.name: method
    for method in (
        Method("regression", Regression, "one step, zero noise, pixel losses (2409.11355)"),
        Method(
            "adversarial",
            Adversarial,
            "regression and a hinge GAN on the reference's encoder (2311.17042)",
            rate=1e-4,
            by_psnr=False,
        ),
        Method(
            "consistency",
            lambda reference, _: Consistency(reference),
            "the reference's UNet in 1 to 4 steps, guidance inside (2303.01469, 2310.04378)",
            rate=1e-4,
            crops=SMALL_CROPS,
            true_samples=1,
            student=False,
        ),
    )
}


def get_method(name: str) -> Method:
    """Look up the method called `name`; UserError naming the known ones otherwise."""
    if name not in METHODS:
        raise UserError(f"unknown method {name}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
