"""How long and how fast a training goes, and the optimizer it steps with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

# What may differ between the sittings of one training: how long it is, how often it saves, and
# the precision, since a checkpoint holds fp32.
BUDGET = (
    *("minutes", "steps", "checkpoint_minutes", "picture_minutes", "log_every", "accumulate"),
    "bf16",
)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the budget ends at `steps` or `minutes`, whichever first.

    With `steps` alone nothing depends on the clock, so an interrupted training ends bit for bit
    where an uninterrupted one does. diffusers' `get_scheduler` counts steps and knows no end in
    minutes, so warm-up and decay are our own.
    """

    minutes: float = math.inf
    steps: int = 10**9
    optimizer: str = "adamw"  # of OPTIMIZERS
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    accumulate: int = 1
    bf16: bool | None = None  # None: where the device has instructions for it
    checkpoint_minutes: float = 5.0
    picture_minutes: float = 10.0
    log_every: int = 10

    @property
    def config(self) -> dict[str, Any]:
        """What a resumed training has to repeat."""
        return {name: value for name, value in vars(self).items() if name not in BUDGET}

    def progress(self, step: int, minutes: float) -> float:
        """Return the share of the budget that is spent, 0 to 1."""
        spent = ((step, self.steps), (minutes, self.minutes))
        return min(1.0, max(done / budget if budget else 1.0 for done, budget in spent))

    def rate(self, step: int, progress: float) -> float:
        """Return the learning rate: a linear warm-up, then a cosine to one hundredth."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * (0.01 + 0.99 * cosine)


def adamw(parameters: Iterable[nn.Parameter], schedule: Schedule) -> Optimizer:
    """Make AdamW (arXiv 1711.05101)."""
    rate, decay = schedule.learning_rate, schedule.weight_decay
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, betas=(0.9, 0.99))


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Schedule], Optimizer]] = {"adamw": adamw}
