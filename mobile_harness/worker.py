"""One job in a process of its own (see `host`).

Imports of the runtime happen before the clock starts; a file's own loading, its first call and the
timed calls are measured apart, and memory before outputs are kept.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketfocus.export.targets import get_target
from pocketfocus.mobile_harness.device import PYTORCH, Job
from pocketfocus.run.errors import UserError
from pocketfocus.run.memory import peak_mib

T = TypeVar("T")

Outputs = tuple[Tensor, ...]
Runner = Callable[..., Outputs]
"""The inputs of a file in its order -> its outputs."""
Opener = Callable[[str, int], Runner]
"""(artifact, threads) -> what calls it."""
Tables = Mapping[str, NDArray[np.float32]]
Measured = tuple[dict[str, Any], Tables]
"""The fields of a `Result`, and its outputs by their number."""


def run_file(arguments: Mapping[str, Any], tables: Tables, say: Callable[[str], None]) -> Measured:
    """Do a job whose file is opened by its target's own runtime, or is an eager model."""
    job = read_job(arguments, tables)
    eager = job.target == PYTORCH
    return measure(opener_of_model(job.artifact) if eager else opener_of(job.target), job)


def read_job(arguments: Mapping[str, Any], tables: Tables) -> Job:
    """Return a job as it was before it became JSON and arrays."""
    return Job(inputs=tuple(tables.values()), **arguments)


def opener_of(target: str) -> Opener:
    """Import what opens files of `target`, so that the clock does not see it."""
    chosen = get_target(target)
    reason = chosen.cannot_run()  # imports the runtime
    if reason is not None:
        raise UserError(f"this machine cannot execute {target} files: {reason}")
    opens = chosen.lend or chosen.open  # as an app calls it, without copying what it gives
    return lambda artifact, threads: opens(Path(artifact), threads)


def opener_of_model(spec: str) -> Opener:
    """Import what opens a model that is not exported, as `open_model` would when it needs it."""
    from pocketfocus.export.open import names_reference, open_model

    if names_reference(spec):
        import pocketfocus.models.loading
    else:
        import pocketfocus.models.student  # noqa: F401

    def open_eager(artifact: str, threads: int) -> Runner:
        model = open_model(artifact, threads)
        return lambda photo, position: (model(photo, int(position.argmax())),)

    return open_eager


def measure(opener: Opener, job: Job) -> Measured:
    """Open the artifact, call it as the job says, and report times, memory and outputs."""
    threads = job.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    inputs = [
        tuple(torch.from_numpy(table[n].copy()) for table, n in zip(job.inputs, call, strict=True))
        for call in job.calls
    ]
    with torch.inference_mode():
        run, load_ms = timed(lambda: opener(job.artifact, threads))
        endless = itertools.cycle(inputs)
        first, first_ms = timed(lambda: run(*next(endless)))
        if job.want_outputs:
            first = tuple(output.clone() for output in first)  # which the next call may overwrite
        times = job.begun(first_ms)
        for _ in range(0 if times else job.warmup):
            run(*next(endless))
        while not job.is_spent(times):
            times.append(timed(lambda: run(*next(endless)))[1])
        peak = peak_mib()
        outputs = collect(run, inputs, first) if job.want_outputs else []
    fields = {
        "load_ms": load_ms,
        "first_ms": first_ms,
        "times_ms": times,
        "peak_rss_mib": peak,
        "threads": threads,
    }
    return fields, {str(k): output for k, output in enumerate(outputs)}


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return a call's result and its wall-clock milliseconds."""
    start = time.perf_counter_ns()
    result = call()
    return result, (time.perf_counter_ns() - start) / 1e6


def collect(run: Runner, inputs: Sequence[Outputs], first: Outputs) -> list[NDArray[np.float32]]:
    """Return every output of every call, [N, *shape] float32; those of the first are made."""
    kept = [np.empty((len(inputs), *output.shape), np.float32) for output in first]
    for number, given in enumerate(inputs):
        made = first if number == 0 else run(*given)
        for table, output in zip(kept, made, strict=True):
            if output.shape != table.shape[1:]:
                raise ValueError(
                    f"outputs differ in shape: {list(table.shape[1:])}, then {list(output.shape)}"
                )
            table[number] = output.float().numpy()
    return kept
