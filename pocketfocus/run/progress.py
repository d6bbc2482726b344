"""Progress on standard error: one console and one progress bar for every stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pocketfocus.run.text import printable

T = TypeVar("T")

console = Console(stderr=True, highlight=False, markup=False)  # names are no markup


def progress_bar() -> Progress:
    """Return a bar with description, counts, elapsed and remaining time; silent when not a
    terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable` under a progress bar."""
    with progress_bar() as bar:
        yield from bar.track(iterable, total=total, description=description)


def say(line: str) -> None:
    """Print one line of progress, whole however long it is."""
    console.print(printable(line), soft_wrap=True)


@contextmanager
def step(description: str) -> Iterator[None]:
    """Say what is under way while one long call runs that cannot report progress."""
    if console.is_terminal:
        with console.status(Text(printable(description))):
            yield
    else:
        say(description)
        yield
