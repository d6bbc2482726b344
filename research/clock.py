"""Files timed against each other on this machine, call by call in turn.

A busy machine slows down by tens of percent within seconds, so what is to be compared has to be
measured within seconds too. Every runtime has one process of its own with all of its files loaded
(two runtimes in one process would share cores with each other's spinning threads), and they are
asked in turn: a round is one visit to every file, every other round goes backwards, and ratios are
taken within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pocketfocus.data.optics import one_hot
from pocketfocus.export.targets import get_target
from pocketfocus.mobile_harness.device import PYTORCH
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError

WARMUP = 1  # untimed calls at every visit: caches are another file's, threads sleep
POSITION = FRAMES // 2  # the network does the same work at any position

Round = dict[str, list[float]]
"""Milliseconds of the calls of one round, by the name of a file."""


@dataclass(frozen=True)
class Timed:
    """A file to time: its `target` (`PYTORCH` for a student folder), and a photo [1,3,H,W]."""

    name: str
    target: str
    path: Path
    photo: NDArray[np.float32]


def rounds(
    files: Sequence[Timed], calls: int, first: int, last: int, threads: int | None = None
) -> Iterator[Round]:
    """Rounds number `first` to `last` - 1, each with `calls` timed calls of every file.

    `threads` of every runtime; None for as many as PyTorch takes. UserError when a file cannot be
    opened or called, before the first round.
    """
    if first >= last:
        return
    with ExitStack() as stack:
        asked: dict[str, Callable[[str, int], list[float]]] = {}
        for target in dict.fromkeys(file.target for file in files):
            ask = stack.enter_context(_runtime([f for f in files if f.target == target], threads))
            asked |= {file.name: ask for file in files if file.target == target}
        for number in range(first, last):
            order = files if number % 2 == 0 else files[::-1]
            yield {file.name: asked[file.name](file.name, calls) for file in order}


@contextmanager
def _runtime(
    files: Sequence[Timed], threads: int | None
) -> Iterator[Callable[[str, int], list[float]]]:
    """A process with these files open, and what asks it for the times (ms) of one of them."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, list(files), threads), daemon=True)
    process.start()
    theirs.close()

    def ask(name: str, calls: int) -> list[float]:
        ours.send((name, calls))
        return _answer(ours)

    try:
        _answer(ours)  # all are open and were called
        yield ask
    finally:
        ours.close()
        process.terminate()
        process.join()


def _answer(connection: Connection) -> list[float]:
    try:
        times, mistake = connection.recv()
    except EOFError:
        raise UserError("the process that timed the files died: free some memory") from None
    if mistake:
        raise UserError(mistake)
    return list(times)


def _serve(connection: Connection, files: Sequence[Timed], threads: int | None) -> None:
    """Open every file and call it once; then answer (name, calls) with times until nobody asks."""
    name = ""
    try:
        torch.set_num_threads(threads or torch.get_num_threads())
        with torch.inference_mode():
            opened = {}
            for file in files:
                name = file.name
                opened[name] = _opened(file)
                opened[name]()
            connection.send(([], ""))
            while True:
                name, calls = connection.recv()
                for _ in range(WARMUP):
                    opened[name]()
                connection.send(([_ms(opened[name]) for _ in range(calls)], ""))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "no message")
        connection.send(([], f"{name} cannot be timed: {line}"))


def _opened(file: Timed) -> Callable[[], Any]:
    """The call to time."""
    photo, position = torch.from_numpy(file.photo), one_hot(POSITION)
    run: Callable[..., Any]
    if file.target == PYTORCH:
        from pocketfocus.models.student import load_student

        run = load_student(file.path)
    else:
        run = get_target(file.target).open(file.path, torch.get_num_threads())
    return lambda: run(photo, position)


def _ms(call: Callable[[], Any]) -> float:
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6


def p50(measured: Sequence[Round], name: str) -> float:
    """Median over all calls of a file, ms."""
    return median(ms for found in measured for ms in found[name])


def ratio(measured: Sequence[Mapping[str, Sequence[float]]], name: str, other: str) -> float:
    """How many times as long a file takes as another: the median of the rounds' ratios."""
    return median(median(found[name]) / median(found[other]) for found in measured)
