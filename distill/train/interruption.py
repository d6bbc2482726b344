"""Ctrl-C and requests to terminate, which a training heeds between two steps."""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import Any

PATIENCE_SECONDS = 3.0  # a second Ctrl-C after this stops without saving


class Interruption:
    """A context in which Ctrl-C and SIGTERM are only noted, as `requested`.

    Outside the main thread, where Python lets nobody handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first, self._before = math.inf, dict[signal.Signals, Any]()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        if time.monotonic() - self._first > PATIENCE_SECONDS:
            raise KeyboardInterrupt
        self._first = min(self._first, time.monotonic())
        self.requested = True
