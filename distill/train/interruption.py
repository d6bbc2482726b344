"""Ctrl-C and requests to end, which a training heeds between two steps."""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import Any, NoReturn

from pocketfocus.run.ending import SIGNALS

PATIENCE_SECONDS = 3.0  # a second Ctrl-C after this stops without saving


class Interruption:
    """A context in which Ctrl-C, SIGTERM and SIGHUP are only noted, as `requested`.

    Outside the main thread, where Python lets nobody handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first, self._before = math.inf, dict[int, Any]()
        self._number = 0  # of the first signal

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *SIGNALS):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def heed(self) -> NoReturn:
        """Raise KeyboardInterrupt, by whatever handled the signal before, if it was handled."""
        handler = self._before.get(self._number)
        if callable(handler):
            handler(self._number, None)
        raise KeyboardInterrupt

    def _note(self, number: int, _: object) -> None:
        self._number = self._number or number
        if time.monotonic() - self._first > PATIENCE_SECONDS:
            raise KeyboardInterrupt
        self._first = min(self._first, time.monotonic())
        self.requested = True
