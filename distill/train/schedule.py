"""How long and how fast a training goes, and the optimizer it steps with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from pocketfocus.distill.train.muon import Muon

LAST_RATE = 0.01  # of the learning rate, at the end
BETAS = (0.9, 0.99)
PUBLISHED_BETAS, PUBLISHED_EPS = (0.9, 0.999), 1e-7  # Learn2Refocus's
# Layers that end a network, by their names, for AdamW. A student's `gains` and `pixels` learn a
# little better with Muon (docs/training.md).
VALUES = {"dioptres", "position", "conv_out"}

# What may differ between the sittings of one training: how long it is, how often it saves, and
# the precision, since a checkpoint holds fp32.
BUDGET = (
    *("minutes", "steps", "checkpoint_minutes", "picture_minutes", "log_every", "accumulate"),
    "bf16",
)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the budget ends at `steps` or `minutes`, whichever first.

    After a linear warm-up the rate falls as a cosine to one hundredth; with `decay` it stays, and
    falls linearly over that last share of the budget, if it is not 0.

    With `steps` alone nothing depends on the clock, so an interrupted training ends bit for bit
    where an uninterrupted one does. diffusers' `get_scheduler` counts steps and knows no end in
    minutes, so warm-up and decay are our own.
    """

    minutes: float = math.inf
    steps: int = 10**9
    optimizer: str = "adamw"  # of OPTIMIZERS
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    decay: float | None = None
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    accumulate: int = 1
    bf16: bool | None = None  # None: where the device has instructions for it
    checkpoint_minutes: float = 5.0
    picture_minutes: float = 10.0
    log_every: int = 10

    @property
    def config(self) -> dict[str, object]:
        """What a resumed training has to repeat."""
        return {name: value for name, value in vars(self).items() if name not in BUDGET}

    def progress(self, step: int, minutes: float) -> float:
        """Return the share of the budget that is spent, 0 to 1."""
        spent = ((step, self.steps), (minutes, self.minutes))
        return min(1.0, max(done / budget if budget else 1.0 for done, budget in spent))

    def rate(self, step: int, progress: float) -> float:
        """Return the learning rate of a step, when this share of the budget is spent."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        if self.decay is None:
            left = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
        elif self.decay == 0:
            left = 1.0
        else:
            left = max(LAST_RATE, min(1.0, (1 - progress) / self.decay))
        return self.learning_rate * warmup * left


def adamw(
    named: Mapping[str, nn.Parameter],
    schedule: Schedule,
    betas: tuple[float, float] = BETAS,
    eps: float = 1e-8,
) -> Optimizer:
    """Make AdamW (arXiv 1711.05101)."""
    rate, decay = schedule.learning_rate, schedule.weight_decay
    return torch.optim.AdamW(named.values(), rate, betas, eps, weight_decay=decay)


def published_adamw(named: Mapping[str, nn.Parameter], schedule: Schedule) -> Optimizer:
    """Make AdamW with Learn2Refocus's settings.

    Its own lists every temporal parameter twice, and so moves each about twice as far, as far as
    PyTorch's kernels do not meet on the same memory. This one lists, and moves, each once: twice
    the learning rate comes nearest to that.
    """
    return adamw(named, schedule, PUBLISHED_BETAS, PUBLISHED_EPS)


def muon(named: Mapping[str, nn.Parameter], schedule: Schedule) -> Optimizer:
    """Make Muon for the kernels of convolutions, and AdamW for what else there is."""
    kernels = {n: p for n, p in named.items() if p.ndim == 4 and not VALUES & set(n.split("."))}
    others = adamw({n: p for n, p in named.items() if n not in kernels}, schedule)
    return Muon(kernels.values(), lr=schedule.learning_rate, others=others)


OPTIMIZERS: dict[str, Callable[[Mapping[str, nn.Parameter], Schedule], Optimizer]] = {
    "adamw": adamw,
    "adamw-published": published_adamw,
    "muon": muon,
}
