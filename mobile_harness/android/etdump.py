"""Times out of an ETDump, by ExecuTorch's own Inspector."""

from __future__ import annotations

import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketfocus.mobile_harness.device import JobError
from pocketfocus.run.results import Operator

EXECUTE = "Method::execute"
LOAD = ("Program::load_method", "Method::init")
WHOLE = (EXECUTE, *LOAD)


@dataclass(frozen=True)
class Profile:
    """Milliseconds: loading, every execution in order, and the median of every operator."""

    load_ms: float
    times_ms: tuple[float, ...]
    operators: tuple[Operator, ...]


def read_profile(path: Path) -> Profile:
    """Read the profile in an ETDump file.

    Raises JobError when it holds no execution, as from a runner without the event tracer.
    """
    from executorch.devtools import Inspector

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Output Buffer not found")  # tensors are not wanted
            blocks = Inspector(etdump_path=str(path)).event_blocks
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        raise JobError(f"{path.name} is no ETDump that ExecuTorch's Inspector reads") from error
    events = [
        (event.name, event.perf_data.raw, bool(event.is_delegated_op))
        for block in blocks
        for event in block.events
        if event.perf_data is not None
    ]
    times = [ms for name, raw, _ in events if name == EXECUTE for ms in raw]
    if not times:
        raise JobError(
            f"{path.name} holds no execution: build executor_runner with "
            "EXECUTORCH_ENABLE_EVENT_TRACER=ON"
        )
    load = max((float(raw[0]) for name, raw, _ in events if name in LOAD), default=0.0)
    operators = tuple(
        Operator(operator=name, delegated=delegated, p50_ms=round(float(np.median(raw)), 4))
        for name, raw, delegated in events
        if name not in WHOLE
    )
    return Profile(load, tuple(map(float, times)), operators)
