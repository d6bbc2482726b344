"""One clean-up for every way to end: other signals end a process as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]
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

    with _handled(signals, interrupt):
        yield came


@contextmanager
def uninterrupted(*signals: signal.Signals) -> Iterator[None]:
    """Keep these signals until the block has ended: what is half made cannot be cleaned up. As of
    `as_interrupted`, but for what they do."""
    came: list[int] = []
    with _handled(signals, lambda number, _: came.append(number)):
        yield
    for number in came:
        signal.raise_signal(number)


@contextmanager
def _handled(signals: Sequence[signal.Signals], handler: Handler) -> Iterator[None]:
    """Let a handler take these signals in the block, but for ignored ones, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]
    before = [(each, signal.signal(each, handler)) for each in heard]
    try:
        yield
    finally:
        for each, was in before:
            signal.signal(each, was)
