"""The typer app and its edge: exit codes, and one line for every error.

Exit codes: 0 done; 1 a gate failed; 2 bad input or environment, one line on standard error;
130 interrupted (Ctrl-C), 143 by SIGTERM, 129 by SIGHUP, one line. `--debug`, anywhere on the
command line, adds the traceback.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from textwrap import shorten
from typing import Annotated

import typer

import pocketfocus
from pocketfocus.cli import (
    artifacts,
    build,
    compare,
    lint,
    machine,
    photos,
    publish,
    quiet,
    recipes,
    streams,
    train,
)
from pocketfocus.run.ending import SIGNALS, as_interrupted
from pocketfocus.run.errors import UserError, way_to_write
from pocketfocus.run.memory import keep_freed_memory
from pocketfocus.run.text import printable

BAD_INPUT, INTERRUPTED, SIGNALLED = 2, 130, 128
LONGEST = 400  # characters of an error that is not foreseen
DEBUG = "--debug"
UNREACHABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)

app = typer.Typer(
    name="pocketfocus",
    help="Make a file that a phone can run of a model that refocuses photos: "
    "distil, quantize, export, prove parity, measure.",
    epilog="Example: pocketfocus build --out build/mine",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (build, train, artifacts, lint, compare, recipes, photos, machine, publish):
    app.add_typer(group.commands)


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show the traceback of an error (any command).")
    ] = False,
) -> None:
    """Print the version, or the help when no command is named."""
    if version:
        typer.echo(f"pocketfocus {pocketfocus.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@cache
def command_line() -> Callable[..., object]:
    """Return the command line, put together once a process."""
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    quiet.hush()
    keep_freed_memory()
    with streams.lasting_streams():
        return run(arguments)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code, whatever goes wrong."""
    debug = DEBUG in arguments
    words, came = [a for a in arguments if a != DEBUG], list[int]()
    try:
        with as_interrupted(*SIGNALS) as came:
            code = command_line()(words, prog_name="pocketfocus", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return fail(describe(error), BAD_INPUT)
    if code == INTERRUPTED:
        ended = SIGNALLED + came[0] if came else INTERRUPTED
        return fail("interrupted: files are whole or absent, run it again to go on", ended)
    return code if isinstance(code, int) else 0


def fail(message: str, code: int) -> int:
    """Print one line on standard error and hand `code` back."""
    print(f"pocketfocus: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def describe(error: Exception) -> str:
    """Return what is wrong and what to do, for any exception."""
    if isinstance(error, UserError):
        return str(error)
    if hasattr(error, "format_message"):  # typer's usage errors
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "pocketfocus"
        return f"{str(error.format_message()).rstrip('.')} (see `{command} --help`)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        where = f"cannot write {error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {way_to_write(error)}"
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed: run `make setup` or pip install it"
    if isinstance(error, OSError) and error.errno in UNREACHABLE:
        return f"{error.filename} cannot be reached ({error.strerror}): name another path"
    if isinstance(error, MemoryError):
        why = f" ({error})" if str(error) else ""
        return f"out of memory{why}: close other programs or use smaller photos"
    said = shorten(str(error), LONGEST, placeholder=" …")  # compilers say 600 kB
    return f"{type(error).__name__}: {said} (not foreseen; add {DEBUG} to see where)"
