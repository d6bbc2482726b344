"""Executes jobs inside the emulated ARM64 Python, which has numpy and the runtimes, no pocketfocus.

Started once, it reads a job's folder from each line of standard input, leaves there what `worker`
leaves on the host (result.json, outputs.npy), and answers `first SECONDS`, then `done`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

POSITIONS = 9
Runner = Callable[[Any, Any], Any]


def main() -> None:
    """Jobs until standard input ends."""
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        try:
            report = work(folder)
        except Exception as error:
            text = next(iter(str(error).strip().splitlines()), "no message")
            report = {"error": f"{type(error).__name__}: {text}"}
        (folder / "result.json").write_text(json.dumps(report), encoding="utf-8")
        answer("done")


def answer(text: str) -> None:
    """One line to the device."""
    print(text, flush=True)


def work(folder: Path) -> dict[str, Any]:
    """Open the file, make every call of the job once, and save the stacks [N,9,3,H,W]."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    photos = np.load(folder / "photos.npy")
    threads = job["threads"] or 1
    opener = OPENERS[job["target"]]()
    start = time.perf_counter()
    run = opener(job["artifact"], threads)
    load_ms = 1000 * (time.perf_counter() - start)
    stacks, times = [], []
    for index, position in job["calls"]:
        one_hot = np.eye(POSITIONS, dtype=np.float32)[position : position + 1]
        start = time.perf_counter()
        stacks.append(np.array(run(photos[index : index + 1], one_hot), np.float32))
        times.append(1000 * (time.perf_counter() - start))
        if len(times) == 1:
            answer(f"first {times[0] / 1000}")
    if job["want_outputs"]:
        np.save(folder / "outputs.npy", np.stack(stacks))
    return {
        "load_ms": load_ms,
        "first_ms": times[0],
        "times_ms": times[1:],
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": threads,
    }


def executorch() -> Callable[[str, int], Runner]:
    """What opens .pte files; the runtime's bindings need torch."""
    import torch
    from executorch.extension.pybindings import _portable_lib

    def open_file(artifact: str, threads: int) -> Runner:
        module = _portable_lib._load_for_executorch(artifact)
        return lambda *inputs: module.forward([torch.from_numpy(x) for x in inputs])[0].numpy()

    return open_file


def onnx() -> Callable[[str, int], Runner]:
    """What opens .onnx files."""
    import onnxruntime

    def open_file(artifact: str, threads: int) -> Runner:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            artifact, options, providers=["CPUExecutionProvider"]
        )
        names = [node.name for node in session.get_inputs()]
        return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]

    return open_file


OPENERS = {"executorch": executorch, "onnx": onnx}

if __name__ == "__main__":
    main()
