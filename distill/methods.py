"""The distillation methods: one module each, one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pocketfocus.distill.regression import regression_losses
from pocketfocus.errors import UserError
from pocketfocus.student import RefocusStudent

Losses = Callable[[RefocusStudent, Tensor, Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Method:
    """losses(student, photos [B,3,H,W], positions [B], stacks [B,9,3,H,W]) -> named scalars."""

    name: str
    losses: Losses
    about: str


METHODS = {
    method.name: method
    for method in (
        Method("regression", regression_losses, "one step, zero noise, pixel losses (2409.11355)"),
    )
}


def get_method(name: str) -> Method:
    """The method called `name`; UserError naming the known ones otherwise."""
    if name not in METHODS:
        raise UserError(f"unknown method {name}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
