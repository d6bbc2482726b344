"""The options of a distillation, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketfocus.data.datasets import SYNTHETIC
from pocketfocus.distill.student.methods import get_method
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.student import SHIPPED_WEIGHTS

SAMPLING_SHARE = 0.2  # of the minutes go into sampling the reference, at most
BOTH, REFERENCE, STACKS = LEARN_FROM = ("both", "reference", "stacks")


@dataclass(frozen=True)
class Distillation:
    """How to distil.

    Attributes:
        minutes: bound sampling the reference and training together.
        steps: bound the training. With `steps` alone nothing depends on the clock.
        reference: what is distilled, as `load_reference` takes it.
        start: a student folder to start from; None for the shipped one.
        from_scratch: start from a random student instead.
        preset: of the student; a start has to be of it. From scratch, None is `tiny`.
        photos: that the reference refocuses; None for the bundled ones.
        method: one of METHODS.
        sources: of true stacks, by name (`datasets`).
        scenes: how many of each source that is rendered.
        crops: a sample is a teacher stack, of the first crops' size, and crops of true stacks; None
            leaves them to the method.
        max_teacher_stacks: how many stacks the reference makes, at most.
        learning_rate: the peak; None leaves it to the method.
        qat: the recipe through whose rounding the student learns; None for none.
        learn_from: `both`, teacher stacks and true ones, or one of them (LEARN_FROM).
        seed: of everything that is random.
    """

    minutes: float = 1.0
    steps: int | None = None
    reference: str = "default"
    start: Path | None = None
    from_scratch: bool = False
    preset: str | None = None
    photos: Sequence[Path] | None = None
    method: str = "regression"
    sources: tuple[str, ...] = (SYNTHETIC,)
    scenes: int = 24
    crops: tuple[Crops, ...] | None = None
    max_teacher_stacks: int = 600
    learning_rate: float | None = None
    qat: str | None = None
    learn_from: str = BOTH
    seed: int = 0

    @property
    def start_folder(self) -> Path:
        """The student folder to start from."""
        return self.start or SHIPPED_WEIGHTS

    @property
    def rate(self) -> float:
        """The peak learning rate, gentle from a warm start."""
        method = get_method(self.method)
        return self.learning_rate or (method.scratch_rate if self.from_scratch else method.rate)

    @property
    def parts(self) -> tuple[Crops, ...]:
        """The crops to take, one part of the budget after the other."""
        return self.crops or get_method(self.method).crops

    @property
    def schedule(self) -> Schedule:
        """The schedule of the training, after the reference is sampled."""
        minutes = self.minutes * (1 - SAMPLING_SHARE)
        schedule = Schedule(minutes, learning_rate=self.rate, log_every=1)
        return schedule if self.steps is None else replace(schedule, steps=self.steps)
