"""One clean-up for every way to end: other signals end a process as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # of `kill`, systems that shut down, closed terminals


@contextmanager
def as_interrupted(*signals: signal.Signals) -> Iterator[list[int]]:
    """Let these signals raise KeyboardInterrupt in the block; yields the numbers that came.

    What it opened is then cleaned up: workers are killed, scratch folders deleted. A signal that
    is ignored, as below nohup, stays so. Only the main thread can do this; in others nothing is
    changed.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    heard = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]
    before = [(each, signal.signal(each, interrupt)) for each in heard]
    try:
        yield came
    finally:
        for each, handler in before:
            signal.signal(each, handler)


@contextmanager
def uninterrupted(*signals: signal.Signals) -> Iterator[None]:
    """Keep these signals until the block has ended: what is half made cannot be cleaned up. Only
    the main thread can do this; in others nothing is changed."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]
    before = [(each, signal.signal(each, lambda number, _: came.append(number))) for each in heard]
    try:
        yield
    finally:
        for each, handler in before:
            signal.signal(each, handler)
    for number in came:
        signal.raise_signal(number)
