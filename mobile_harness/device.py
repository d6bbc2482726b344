"""What every device takes and gives back: a job, its result, and the interface between.

Legend: P photos, N calls whose outputs are wanted, T = 9 frames, H, W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketfocus.run.errors import UserError

PYTORCH = "pytorch"
"""The target of models that are not exported: the eager student and the reference pipeline."""

HOST = "host"
MIL_CHECK = "mil-check"
"""The target of Core ML files that the MIL check executes, and the name of its device."""

Call = tuple[int, int]
"""Which photo (index into `Job.photos`), at which focal position (0–8)."""


class JobError(UserError):
    """A device ran a job, and it crashed, gave nonsense or did not end in time."""


@dataclass(frozen=True)
class Job:
    """One file to execute on a device.

    Attributes:
        artifact: path of an exported file; or, with the target `PYTORCH`, of a student folder, or
            `reference` or `reference:SPEC` for the full pipeline (see `load_reference`).
        target: name of the export target, or `PYTORCH`.
        photos: [P, 3, H, W] float32 sRGB in [-1, 1].
        calls: the calls to make, each a photo's index and a position; timed calls cycle through.
        warmup: untimed calls after the first call and before the timed ones.
        runs: timed calls.
        budget_s: seconds after which no further timed call is begun; one is always made.
        threads: CPU threads; None for the device's own default.
        want_outputs: bring back the stack of every call in `calls`.
        timeout_s: seconds until the job is given up.
    """

    artifact: str
    target: str
    photos: NDArray[np.float32]
    calls: Sequence[Call]
    warmup: int = 0
    runs: int = 0
    budget_s: float = math.inf
    threads: int | None = None
    want_outputs: bool = False
    timeout_s: float = 600.0


@dataclass(frozen=True)
class Result:
    """What a device measured.

    Attributes:
        outputs: [N, 9, 3, H, W] float32, one stack for every call of the job; None if not wanted.
        load_ms: from opening the file to a model that can be called; imports excluded.
        first_ms: the first call, one-time preparations of the runtime included.
        times_ms: every timed call in order, after first call and warm-up.
        peak_rss_mib: peak resident memory (MiB) of the process, its runtime and inputs included;
            None where the device does not tell.
        threads: CPU threads that the calls were allowed; None for the device's own choice.
        notes: what else the device told: battery, profile, compute plan.
    """

    outputs: NDArray[np.float32] | None
    load_ms: float
    first_ms: float
    times_ms: tuple[float, ...]
    peak_rss_mib: float | None
    threads: int | None
    notes: dict[str, Any] = field(default_factory=dict)


class Device(Protocol):
    """A place where files run: this host, an emulator, a phone."""

    @property
    def name(self) -> str:
        """The name by which users choose it, and the `device` of its rows."""
        ...

    def describe(self) -> dict[str, str]:
        """Facts for the report: chip, system, memory, versions of its runtimes."""
        ...

    def why_not(self, target: str) -> str | None:
        """Why the device cannot execute files of `target`; None when it can."""
        ...

    def run(self, job: Job) -> Result:
        """Execute a job; JobError when it fails, UserError when its input is bad."""
        ...


RUNTIMES = {
    PYTORCH: "torch",
    "executorch": "executorch",
    "onnx": "onnxruntime",
    "coreml": "coremltools",
    MIL_CHECK: "torch",
}
"""Which fact of `Device.describe` tells the version of a target's runtime."""


def facts(device: Device | None, target: str) -> dict[str, str]:
    """What a row says of where it comes from; empty strings where the device does not tell."""
    about = device.describe() if device else {}
    runtime = RUNTIMES.get(target, target)
    version = about.get(runtime, "")
    return {
        "model": about.get("model", ""),
        "chip": about.get("chip", ""),
        "os": about.get("os", ""),
        "runtime": version if " " in version or not version else f"{runtime} {version}",
    }


def runtime_target(device: Device) -> str:
    """A target that the device executes; its first choice is what an app would call."""
    if device.name == MIL_CHECK:
        return "coreml"
    able = (t for t in ("executorch", "coreml", "onnx") if device.why_not(t) is None)
    return next(able, "executorch")
