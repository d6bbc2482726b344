"""One job in a process of its own: `python -m pocketfocus.mobile_harness.worker JOB_DIR`.

Reads job.json and photos.npy, writes result.json and outputs.npy (see `host`). Imports of the
runtime happen before the clock starts; a file's own loading, first call and calls are timed apart.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketfocus.mobile_harness.device import MIL_CHECK, PYTORCH
from pocketfocus.run.errors import UserError
from pocketfocus.run.memory import peak_mib

Runner = Callable[[Tensor, Tensor], Tensor]
"""(photo [1,3,H,W], position one-hot [1,9]) -> stack [9,3,H,W], all in [-1, 1] or {0, 1}."""
Opener = Callable[[str, int], Runner]
"""(artifact, threads) -> what calls it."""


def main(folder: Path) -> None:
    """Do the job; an exception becomes `mistake` (the user's) or `error` (the file's)."""
    try:
        report = work(folder)
    except UserError as error:
        report = {"mistake": str(error)}
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "no message")
        report = {"error": f"{type(error).__name__}: {line}"}
    (folder / "result.json").write_text(json.dumps(report), encoding="utf-8")


def work(folder: Path) -> dict[str, Any]:
    """Open the artifact, call it as the job says, and report times and memory."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    threads = job["threads"] or torch.get_num_threads()
    torch.set_num_threads(threads)
    photos = np.load(folder / "photos.npy", mmap_mode="r")
    inputs = [_inputs(photos, *call) for call in job["calls"]]
    opener = prepare(job["target"])

    with torch.inference_mode():
        run, load_ms = timed(lambda: opener(job["artifact"], threads))
        endless = itertools.cycle(inputs)
        first, first_ms = timed(lambda: run(*next(endless)))
        for _ in range(job["warmup"]):
            run(*next(endless))
        times: list[float] = []
        while len(times) < job["runs"] and (not times or sum(times) < 1000 * job["budget_s"]):
            times.append(timed(lambda: run(*next(endless)))[1])
        peak = peak_mib()
        if job["want_outputs"]:
            save_outputs(folder / "outputs.npy", run, inputs, first)
    return {
        "load_ms": load_ms,
        "first_ms": first_ms,
        "times_ms": times,
        "peak_rss_mib": peak,
        "threads": threads,
    }


def prepare(target: str) -> Opener:
    """Import what opens files of `target`, so that the clock does not see it."""
    if target == PYTORCH:
        return _eager()
    if target == MIL_CHECK:
        from pocketfocus.export.coreml.mil.program import load_program

        return lambda artifact, threads: _stack_of(load_program(Path(artifact)).run)
    from pocketfocus.export.targets import get_target

    chosen = get_target(target)
    reason = chosen.cannot_run()  # imports the runtime
    if reason is not None:
        raise UserError(f"this machine cannot execute {target} files: {reason}")
    return lambda artifact, threads: _stack_of(chosen.open(Path(artifact), threads))


def _stack_of(run: Callable[..., tuple[Tensor, ...]]) -> Runner:
    return lambda photo, position: run(photo, position)[0]


def _eager() -> Opener:
    import pocketfocus.models.loading
    import pocketfocus.models.student  # noqa: F401 - `open_model` imports them when it needs them
    from pocketfocus.export.open import open_model

    def open_eager(artifact: str, threads: int) -> Runner:
        model = open_model(artifact, threads)
        return lambda photo, position: model(photo, int(position.argmax()))

    return open_eager


def _inputs(photos: NDArray[np.float32], index: int, position: int) -> tuple[Tensor, Tensor]:
    from pocketfocus.data.optics import one_hot

    return torch.from_numpy(photos[index : index + 1].copy()), one_hot(position)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result and its wall-clock milliseconds."""
    start = time.perf_counter_ns()
    result = call()
    return result, (time.perf_counter_ns() - start) / 1e6


def save_outputs(
    path: Path, run: Runner, inputs: list[tuple[Tensor, Tensor]], first: Tensor
) -> None:
    """Write the stack of every call as one [N, *stack] float32 array; `first` is already made."""
    stacks: NDArray[np.float32] | None = None
    for index, (photo, position) in enumerate(inputs):
        stack = (first if index == 0 else run(photo, position)).float().numpy()
        if stacks is None:
            shape = (len(inputs), *stack.shape)
            stacks = np.lib.format.open_memmap(path, "w+", np.dtype(np.float32), shape)
        if stack.shape != stacks.shape[1:]:
            raise ValueError(f"outputs differ in shape: {stacks.shape[1:]}, then {stack.shape}")
        stacks[index] = stack


if __name__ == "__main__":
    main(Path(sys.argv[1]))
