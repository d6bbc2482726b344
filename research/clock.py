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
from contextlib import ExitStack
from dataclasses import dataclass
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
from pocketfocus.run.processes import Work, Worker

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
    """Yield rounds number `first` to `last` - 1, each with `calls` timed calls of every file.

    `threads` of every runtime; None for as many as PyTorch takes. UserError when a file cannot be
    opened or called, before the first round.
    """
    if first >= last:
        return
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for target in dict.fromkeys(file.target for file in files):
            workers[target] = stack.enter_context(Worker())
            for file in files:
                if file.target == target:
                    workers[target].run(opening(file, threads))
        for number in range(first, last):
            order = files if number % 2 == 0 else files[::-1]
            yield {file.name: times_of(workers[file.target], file.name, calls) for file in order}


def opening(file: Timed, threads: int | None) -> Work:
    """Return the work that opens a file, where it stays open."""
    about = {"name": file.name, "target": file.target, "path": str(file.path), "threads": threads}
    return Work(f"{__name__}:open_file", about, {"photo": file.photo})


def times_of(worker: Worker, name: str, calls: int) -> list[float]:
    """Return the times (ms) of so many calls of an open file."""
    answer = worker.run(Work(f"{__name__}:time_file", {"name": name, "calls": calls}))
    return list(answer.fields["times_ms"])


OPEN: dict[str, Callable[[], object]] = {}
"""The call of every file that this process has open, if it is a worker."""

Answered = tuple[dict[str, Any], dict[str, NDArray[Any]]]


def open_file(
    about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], say: object
) -> Answered:
    """Open a file in a worker, call it once, and keep it."""
    torch.set_num_threads(about["threads"] or torch.get_num_threads())
    photo, position = torch.from_numpy(arrays["photo"].copy()), one_hot(POSITION)
    try:
        if about["target"] == PYTORCH:
            from pocketfocus.models.student import load_student

            run: Callable[..., object] = load_student(Path(about["path"]))
        else:
            run = get_target(about["target"]).open(Path(about["path"]), torch.get_num_threads())
        OPEN[about["name"]] = torch.inference_mode()(lambda: run(photo, position))
        OPEN[about["name"]]()
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "no message")
        raise UserError(f"{about['name']} cannot be timed: {line}") from error
    return {}, {}


def time_file(
    about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], say: object
) -> Answered:
    """Time calls (ms) of an open file in a worker."""
    call = OPEN[about["name"]]
    for _ in range(WARMUP):
        call()
    return {"times_ms": [milliseconds(call) for _ in range(about["calls"])]}, {}


def milliseconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6


def p50(measured: Sequence[Round], name: str) -> float:
    """Return the median over all calls of a file, ms."""
    return median(ms for found in measured for ms in found[name])


def ratio(measured: Sequence[Mapping[str, Sequence[float]]], name: str, other: str) -> float:
    """Return how many times as long a file takes as another: the median of the rounds' ratios."""
    return median(median(found[name]) / median(found[other]) for found in measured)
