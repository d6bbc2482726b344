"""Emulated ARM64 as a device: the same files in ARM64 builds of their runtimes, under qemu.

It proves what ARM64 kernels compute, not how fast: its times are no latencies. One process serves
all files of a command, since importing torch under emulation takes about a minute.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from weakref import finalize

from pocketfocus.export.executorch import TARGET as EXECUTORCH
from pocketfocus.export.onnx import TARGET as ONNX
from pocketfocus.mobile_harness.arm64 import install as setup
from pocketfocus.mobile_harness.arm64 import worker as functions
from pocketfocus.mobile_harness.device import Job, Result
from pocketfocus.mobile_harness.host import done, work_of
from pocketfocus.mobile_harness.options import Options
from pocketfocus.run.processes import CHILD_FILE, Worker
from pocketfocus.run.progress import console

SLOWER = 12  # times the patience that a job asks for on a host
FUNCTIONS = {EXECUTORCH.name: functions.run_pte, ONNX.name: functions.run_onnx}


@dataclass
class Arm64:
    """ARM64 emulated by qemu on this host; `worker` is its one process."""

    name: str = "arm64"
    worker: Worker | None = field(default=None, repr=False)

    def describe(self) -> dict[str, str]:
        """Return the emulator and the versions of the runtimes; nothing where it is not set up."""
        if setup.why_not_ready() is not None:
            return {}
        wheels = (wheel.partition("==") for wheel in setup.WHEELS)
        return {
            "chip": "Cortex-A76, emulated",
            "os": f"Linux aarch64 under {setup.emulator() or setup.QEMU[0]}",
            "python": setup.PYTHON,
            **{name: version for name, _, version in wheels if version},
        }

    def why_not(self, target: str) -> str | None:
        """Return why not: no runtime for the target on ARM64 Linux, or the set-up is missing."""
        if target not in FUNCTIONS:
            return f"no runtime for {target} files on ARM64 Linux"
        return setup.why_not_ready()

    def run(self, job: Job) -> Result:
        """Execute a job; JobError when the emulated process crashes or does not end in time."""
        if self.worker is None:
            self.worker = start()
            finalize(self, self.worker.close)
        run = partial(
            self.worker.run,
            on_progress=lambda seconds: console.print(estimate(job, float(seconds))),
        )
        work = work_of(job, f"{functions.__file__}:{FUNCTIONS[job.target].__name__}")
        return done(run, replace(job, timeout_s=job.timeout_s and SLOWER * job.timeout_s), work)

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()


def start() -> Worker:
    """Return the emulated Python, which starts and imports a runtime with its first job."""
    console.print("emulated ARM64 starts; its first .pte file waits about a minute for torch")
    command = setup.command(setup.home(), "-P", str(CHILD_FILE))
    return Worker(command, setup.environment(setup.home()))


def estimate(job: Job, seconds: float) -> str:
    """Return what is left of a job whose first call took `seconds`."""
    left = len(job.calls) - 1
    name = Path(job.artifact).name
    return f"{name} on emulated ARM64: {left} calls to go, about {left * seconds:.0f} s"


def connect(address: str, options: Options) -> tuple[Arm64, ...]:
    """Return the entry of the registry."""
    return (Arm64(),)
