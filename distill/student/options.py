"""The options of a distillation, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketfocus.data.datasets import SYNTHETIC
from pocketfocus.distill.student.methods import Method, get_method, with_optimizer
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.student import SHIPPED_WEIGHTS

SAMPLING_SHARE = 0.2  # of the minutes go into sampling the reference, at most
BOTH, REFERENCE, STACKS = LEARN_FROM = ("both", "reference", "stacks")


@dataclass(frozen=True)
class Distillation:
    """How to distil. `minutes` bound sampling the reference and training together, `steps` the
    training; with `steps` alone nothing depends on the clock.

    Where both are learned from, each teacher stack, of the first crops' size, comes with as many
    crops of true stacks as the method says.
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
    optimizer: str | None = None  # muon or adamw; None leaves it to the method
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
    def parts(self) -> tuple[Crops, ...]:
        """The crops to take, one part of the budget after the other; so many samples are a step,
        whatever is learned from."""
        parts, each = self.crops or self.chosen.crops, 1 + self.chosen.true_samples
        if self.learn_from != BOTH:
            return parts
        return tuple(replace(part, batch=max(1, part.batch // each)) for part in parts)

    @property
    def schedule(self) -> Schedule:
        """The schedule of the training, after the reference is sampled, finer detail included."""
        usual = self.chosen.scratch if self.from_scratch else self.chosen.warm
        chosen = with_optimizer(usual, self.optimizer, self.from_scratch)
        left = 1.0 if self.learn_from == STACKS else 1 - SAMPLING_SHARE
        rate, steps = self.learning_rate or chosen.learning_rate, self.steps or chosen.steps
        return replace(chosen, minutes=self.minutes * left, steps=steps, learning_rate=rate)
