"""What sizes of crops a training takes, and until when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pocketfocus.run.errors import UserError


@dataclass(frozen=True)
class Crops:
    """`batch` samples of `size` pixels a process, until this share of the budget is spent."""

    until: float
    batch: int
    size: int


def current(crops: Sequence[Crops], progress: float) -> Crops:
    """The crops to take when this share of the budget is spent."""
    return next((part for part in crops if progress < part.until), crops[-1])


def check_size(sides: tuple[int, ...], crops: Sequence[Crops]) -> None:
    """UserError unless stacks whose shape ends in height and width hold every crop."""
    largest, (height, width) = max(part.size for part in crops), sides[-2:]
    if min(height, width) < largest:
        raise UserError(
            f"stacks are {width}x{height} pixels, crops need {largest}: use larger stacks, with "
            f"--size {largest} or more"
        )
