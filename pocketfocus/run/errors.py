"""The one exception for what a user can mend, and how a program ends with it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pocketfocus.run.text import printable


class UserError(Exception):
    """Bad input or environment: the message names both sides and the way out.

    The command line prints it as one line and exits with 2; a traceback only with `--debug`.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's error says, which may be pages; else its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def reported(program: str) -> Iterator[None]:
    """End a script, on a UserError within, with its message in one line and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"{program}: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error


def way_to_write(error: OSError) -> str:
    """Return what a user can do where a file could not be written."""
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    refused = error.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EROFS)
    return ("" if refused else "free some space or ") + "choose another folder"
