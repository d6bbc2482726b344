"""The exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """The average of named parameters, each beside its parameter and sharded as it is.

    diffusers' `EMAModel` has the same decays, but keeps an unnamed list, which a checkpoint by name
    cannot hold, and rounds otherwise than `lerp`, so that the averages would no longer be the ones
    that are stored.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after `step` steps; the decay grows to its value as the average
        gets older."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach(), 1 - decay)

    def load(self) -> None:
        """Put the average into the model."""
        self._set(self.average)

    @contextmanager
    def loaded(self, model: nn.Module) -> Iterator[None]:
        """Hold the average in `model`, for evaluation, as long as the context lasts."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        modes = {module: module.training for module in model.modules()}
        self.load()
        model.eval()
        try:
            yield
        finally:
            self._set(kept)
            for module, training in modes.items():
                module.training = training

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
