"""The distillation methods: one module each, one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pocketfocus.distill.regression import regression_losses
from pocketfocus.errors import UserError
from pocketfocus.student import RefocusStudent


class Losses(Protocol):
    """(student, photos [B,3,H,W], positions [B], stacks [B,9,3,H,W]) -> named scalars."""

    def __call__(
        self,
        student: RefocusStudent,
        photos: Tensor,
        positions: Tensor,
        stacks: Tensor,
        pool: int = 1,
    ) -> dict[str, Tensor]:
        """`loss` is minimised; with `pool`, detail finer than that many pixels is not compared."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to distil: its losses, and a sentence with its paper."""

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
