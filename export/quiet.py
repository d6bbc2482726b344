"""Silence the toolchains while they convert and load: their chatter is no news to a user."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, TextIO, cast

from pocketfocus.run.errors import UserError, first_line

VERBOSE = "POCKETFOCUS_VERBOSE"
AGAIN = ": export it again"


class _Silence:
    """Silence that threads share: the first to ask for it begins it, the last to leave ends it."""

    def __init__(self, begin: Callable[[], contextlib.ExitStack]) -> None:
        self.begin, self.lock = begin, threading.Lock()
        self.threads: Counter[int] = Counter()  # how often each has asked for it
        self.begun = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        if os.environ.get(VERBOSE) == "1":
            yield
            return
        me = threading.get_ident()
        with self.lock:
            if not self.threads:
                self.begun = self.begin()
            self.threads[me] += 1
        try:
            yield
        finally:
            with self.lock:
                self.threads[me] -= 1
                self.threads = +self.threads
                if not self.threads:
                    self.begun.close()


class _Printed:
    """A stream without what silent threads print to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Drop the text of a silent thread, pass on any other's."""
        return len(text) if threading.get_ident() in quiet.threads else self._stream.write(text)


def _hold_back() -> contextlib.ExitStack:
    stack, before = contextlib.ExitStack(), logging.root.manager.disable
    stack.callback(logging.disable, before)
    logging.disable(logging.WARNING)
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    stack.enter_context(contextlib.redirect_stdout(cast(TextIO, _Printed(sys.stdout))))
    stack.enter_context(contextlib.redirect_stderr(cast(TextIO, _Printed(sys.stderr))))
    return stack


def _hold_back_native() -> contextlib.ExitStack:
    stack, kept = contextlib.ExitStack(), os.dup(2)
    stack.callback(os.close, kept)
    stack.callback(os.dup2, kept, 2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    return stack


quiet = _Silence(_hold_back)
"""Hold back Python warnings, log records below ERROR and what the toolchains print.

Errors still come as exceptions, and what other threads print still appears; the environment
variable POCKETFOCUS_VERBOSE=1 lets everything through. Threads may be silent at once.
"""

quiet_native = _Silence(_hold_back_native)
"""Hold back what a C++ library writes to standard error by itself (file descriptor 2)."""


@contextlib.contextmanager
def loading(name: object, what: str, remedy: str = "") -> Iterator[None]:
    """Make a UserError of whatever a toolchain raises that loads a file, a `what`: exception types
    of most share no public base."""
    try:
        yield
    except Exception as error:
        line = first_line(error)
        raise UserError(f"{name} is no {what} that loads ({line}){remedy}") from error


def missing(*modules: str, extra: str = "") -> str | None:
    """Why one of these modules cannot be imported here, in a line; None when all can.

    They come with an `extra` of pocketfocus, or with every installation.
    """
    try:
        with quiet():
            for module in modules:
                import_module(module)
    except ImportError as error:
        how = f"pip install 'pocketfocus[{extra}]'" if extra else "make setup"
        return f"{error}; {how} installs it"
    return None
