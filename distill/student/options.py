"""The options of a distillation, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketfocus.data.datasets import SYNTHETIC
from pocketfocus.distill.student.methods import Method, get_method
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.student import SHIPPED_WEIGHTS

SAMPLING_SHARE = 0.2  # of the minutes go into sampling the reference, at most
BOTH, REFERENCE, STACKS = LEARN_FROM = ("both", "reference", "stacks")


@dataclass(frozen=True)
class Distillation:
    """How to distil. `minutes` bound sampling the reference and training together, `steps` the
    training; with `steps` alone nothing depends on the clock.

    A sample is a teacher stack, of the first crops' size, and crops of true stacks.
    """

    minutes: float = 1.0
    steps: int | None = None
    reference: str = "default"  # as `load_reference` takes it
    start: Path | None = None  # a student folder; None for the shipped one
    from_scratch: bool = False
    preset: str | None = None  # that a start has to be of; from scratch, None is `tiny`
    photos: Sequence[Path] | None = None  # for the reference; None for the bundled ones
    method: str = "regression"
    sources: tuple[str, ...] = (SYNTHETIC,)  # of true stacks, by name (`datasets`)
    scenes: int = 24  # of each source that is rendered
    crops: tuple[Crops, ...] | None = None  # None leaves them to the method
    max_teacher_stacks: int = 600
    learning_rate: float | None = None  # the peak; None leaves it to the method
    qat: str | None = None  # the recipe through whose rounding the student learns
    learn_from: str = BOTH
    seed: int = 0

    @property
    def start_folder(self) -> Path:
        """The student folder to start from."""
        return self.start or SHIPPED_WEIGHTS

    @property
    def chosen(self) -> Method:
        """The method of that name."""
        return get_method(self.method)

    @property
    def rate(self) -> float:
        """The peak learning rate, gentle from a warm start."""
        own = self.chosen.scratch_rate if self.from_scratch else self.chosen.rate
        return self.learning_rate or own

    @property
    def parts(self) -> tuple[Crops, ...]:
        """The crops to take, one part of the budget after the other."""
        return self.crops or self.chosen.crops

    @property
    def schedule(self) -> Schedule:
        """The schedule of the training, after the reference is sampled."""
        minutes = self.minutes * (1 - SAMPLING_SHARE)
        schedule = Schedule(minutes, learning_rate=self.rate, log_every=1)
        return schedule if self.steps is None else replace(schedule, steps=self.steps)
