"""Progress of a conversion that takes minutes inside calls that report none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pocketfocus.run.memory import peak_mib

MAKE = "read and fold"
"""The phase with which every target begins: `Network.make`."""


class Phases:
    """Says what is under way and about how long the rest takes, and keeps what each phase took.

    Args:
        name: of the file.
        shares: of the whole time that each phase takes, in order, as measured; they sum to 1.
        say: takes a line.
    """

    def __init__(
        self, name: str, shares: Mapping[str, float], say: Callable[[str], object]
    ) -> None:
        self.name, self.shares, self.say = name, shares, say
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        number = list(self.shares).index(phase) + 1
        self.say(f"{self.name}: {phase} ({number}/{len(self.shares)}{self.rest()})")
        started = time.monotonic()
        yield
        self.seconds[phase] = round(time.monotonic() - started, 1)
        self.peaks[phase] = round(peak_mib())

    def rest(self) -> str:
        """About how long everything else takes, judged by what is done; "" at the beginning."""
        done = sum(self.shares[phase] for phase in self.seconds)
        if not done:
            return ""
        left = sum(self.seconds.values()) * (1 - done) / done
        return f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"
