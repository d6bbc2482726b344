"""Silence the toolchains while they convert and load: their chatter is no news to a user."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from importlib import import_module

VERBOSE = "POCKETFOCUS_VERBOSE"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back Python warnings, log records below ERROR and printed lines of the toolchains.

    Errors still come as exceptions; the environment variable POCKETFOCUS_VERBOSE=1 lets everything
    through.
    """
    if os.environ.get(VERBOSE) == "1":
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def quiet_native() -> Iterator[None]:
    """Hold back what a C++ library writes to standard error by itself (file descriptor 2)."""
    if os.environ.get(VERBOSE) == "1":
        yield
        return
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
