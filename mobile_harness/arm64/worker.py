"""Jobs inside the emulated ARM64 Python, which has numpy and the runtimes, and no pocketfocus.

It is executed by its path (see `processes.Work`). Every call is made once; `say` tells how many
seconds the first one took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tables = Mapping[str, NDArray[np.float32]]
Say = Callable[[str], None]
Runner = Callable[..., list[NDArray[np.float32]]]
Measured = tuple[dict[str, Any], dict[str, NDArray[np.float32]]]


def run_pte(job: Mapping[str, Any], tables: Tables, say: Say) -> Measured:
    """Do a job with a .pte file; the runtime's bindings need torch."""
    import torch
    from executorch.extension.pybindings import _portable_lib

    def open_file(artifact: str, threads: int) -> Runner:
        module = _portable_lib._load_for_executorch(artifact)
        about = {name: module.method_meta(name) for name in module.method_names()}
        methods = {tuple(meta.input_tensor_meta(0).sizes()): name for name, meta in about.items()}

        def run(*inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
            name = methods.get(inputs[0].shape, "forward")  # which says what it takes
            found = module.run_method(name, [torch.from_numpy(x) for x in inputs])
            return [made.numpy() for made in found]

        return run

    return measure(open_file, job, tables, say)


def run_onnx(job: Mapping[str, Any], tables: Tables, say: Say) -> Measured:
    """Do a job with an .onnx file."""
    import onnxruntime

    def open_file(artifact: str, threads: int) -> Runner:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            artifact, options, providers=["CPUExecutionProvider"]
        )
        names = [node.name for node in session.get_inputs()]
        return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))

    return measure(open_file, job, tables, say)


def measure(
    open_file: Callable[[str, int], Runner], job: Mapping[str, Any], tables: Tables, say: Say
) -> Measured:
    """Make every call of the job and return the fields of a `Result`, and the outputs."""
    threads = job["threads"] or 1
    run, load_ms = timed(open_file, job["artifact"], threads)
    kept: list[list[NDArray[np.float32]]] = []
    times: list[float] = []
    for call in job["calls"]:
        inputs = [table[row].copy() for table, row in zip(tables.values(), call, strict=True)]
        made, ms = timed(run, *inputs)
        times.append(ms)
        if len(times) == 1:
            say(f"{ms / 1000}")
        if job["want_outputs"]:
            kept.append([np.array(output, np.float32) for output in made])
    fields = {
        "load_ms": load_ms,
        "first_ms": times[0],
        "times_ms": times[1:],
        "peak_rss_mib": None,  # of one process that does all jobs: no file's own
        "threads": threads,
    }
    return fields, {str(k): np.stack(made) for k, made in enumerate(zip(*kept, strict=True))}


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Return a call's result and its wall-clock milliseconds."""
    start = time.perf_counter()
    result = call(*arguments)
    return result, 1000 * (time.perf_counter() - start)
