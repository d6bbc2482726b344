"""What every device takes and gives back: a job, its result, and the interface between.

A job executes one file of any network: arrays in, arrays out. Legend: K the inputs of the file in
its own order, R_k the rows of the k-th table of inputs, N the calls of a job.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketfocus.run.errors import UserError

if TYPE_CHECKING:  # what executes a file needs no pydantic
    from pocketfocus.run.results import Notes

PYTORCH = "pytorch"
"""The target of models that are not exported: the eager student and the reference pipeline."""

HOST = "host"
MIL_CHECK = "mil-check"

Arrays = tuple[NDArray[np.float32], ...]
"""One array for every input, or for every output, in the order in which the file has them."""
Call = tuple[int, ...]
"""One call of a file: for each of its inputs, which row of that input's table it takes."""


STOPPED = threading.Event()
"""Set while several devices are left, see `on_each`: their threads begin nothing more, and raise
KeyboardInterrupt."""


class JobError(UserError):
    """A device ran a job, and it crashed, gave nonsense or did not end in time."""


@dataclass(frozen=True)
class Job:
    """One file to execute on a device.

    Attributes:
        artifact: path of an exported file; or, with the target `PYTORCH`, of a student folder, or
            `reference` or `reference:SPEC` for the full pipeline (see `load_reference`).
        target: name of the export target, or `PYTORCH`.
        inputs: K tables of whole inputs, the k-th [R_k, *shape of the file's k-th input] float32.
        calls: N calls to make, each K row numbers; timed calls cycle through them.
        warmup: untimed calls after the first call and before the timed ones.
        runs: timed calls.
        budget_s: seconds after which no further timed call is begun, if at all; one is always made,
            and a first call that takes as long is that one.
        threads: CPU threads; None for the device's own default.
        want_outputs: whether the outputs of every call are brought back.
        timeout_s: seconds until the job is given up, if at all.
    """

    artifact: str
    target: str
    inputs: Arrays
    calls: Sequence[Call]
    warmup: int = 0
    runs: int = 0
    budget_s: float | None = None
    threads: int | None = None
    want_outputs: bool = False
    timeout_s: float | None = 600.0

    def arguments(self) -> dict[str, object]:
        """Return everything but the inputs, as JSON."""
        return {name: value for name, value in vars(self).items() if name != "inputs"}

    def begun(self, first_ms: float) -> list[float]:
        """Return the timed calls that there are after the first one: itself, without a warm-up,
        where it is as long as the budget. What a runtime prepares once is then a small part."""
        is_long = self.budget_s is not None and first_ms >= 1000 * self.budget_s
        return [first_ms] if self.runs > 0 and is_long else []

    def is_spent(self, times_ms: Sequence[float]) -> bool:
        """Return whether these timed calls suffice: as many as wanted, or as fit the budget."""
        if len(times_ms) >= self.runs:
            return True
        spent = self.budget_s is not None and sum(times_ms) >= 1000 * self.budget_s
        return bool(times_ms) and spent


@dataclass(frozen=True)
class Result:
    """What a device measured.

    Attributes:
        outputs: one array [N, *shape] float32 for every output of the file; None if not wanted.
        load_ms: from opening the file to a model that can be called; imports excluded.
        first_ms: the first call, one-time preparations of the runtime included.
        times_ms: every timed call in order, after first call and warm-up, or a long first call.
        peak_rss_mib: peak resident memory (MiB) of the process, its runtime and inputs included;
            None where the device does not tell.
        threads: CPU threads that the calls were allowed; None for the device's own choice.
        notes: what else the device told, if anything: battery, profile, compute plan.
    """

    outputs: Arrays | None
    load_ms: float
    first_ms: float
    times_ms: tuple[float, ...]
    peak_rss_mib: float | None
    threads: int | None
    notes: Notes | None = None


class Device(Protocol):
    """A place where files run: this host, an emulator, a phone."""

    @property
    def name(self) -> str:
        """Return the name by which users choose it, and the `device` of its rows."""

    def describe(self) -> dict[str, str]:
        """Return facts for the report: chip, system, memory, versions of its runtimes."""

    def why_not(self, target: str) -> str | None:
        """Return why the device cannot execute files of `target`; None when it can."""

    def run(self, job: Job) -> Result:
        """Execute a job; JobError when it fails, UserError when its input is bad."""
