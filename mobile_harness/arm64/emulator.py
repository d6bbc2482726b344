"""Emulated ARM64 as a device: the same files in ARM64 builds of their runtimes, under qemu.

It proves what ARM64 kernels compute, not how fast: its times are no latencies. One worker serves
all files of a command, since importing torch under emulation takes about a minute.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pocketfocus.mobile_harness.arm64 import install as setup
from pocketfocus.mobile_harness.arm64 import worker as arm64_worker
from pocketfocus.mobile_harness.device import Job, JobError, Result
from pocketfocus.mobile_harness.host import read_result, write_job
from pocketfocus.mobile_harness.options import Options
from pocketfocus.run.processes import death
from pocketfocus.run.progress import console

SLOWER = 12  # times the patience that a job asks for on a host


@dataclass
class Worker:
    """The emulated process."""

    process: subprocess.Popen[str]
    words: Path

    def stop(self) -> None:
        """End it and delete what it said."""
        self.process.kill()
        self.process.wait()
        self.words.unlink(missing_ok=True)

    def last_words(self) -> str:
        """How it ended, in one phrase."""
        said = self.words.read_text(encoding="utf-8", errors="replace")
        return death(subprocess.CompletedProcess([], self.process.wait(), "", said))


@dataclass
class Arm64:
    """ARM64 emulated by qemu on this host."""

    name: str = "arm64"
    worker: Worker | None = field(default=None, repr=False)

    def describe(self) -> dict[str, str]:
        """The emulator and the versions of the runtimes; nothing where it is not set up."""
        if setup.why_not_ready() is not None:
            return {}
        wheels = (wheel.partition("==") for wheel in setup.wheels())
        return {
            "chip": "Cortex-A76, emulated",
            "os": f"Linux aarch64 under {setup.emulator() or setup.QEMU[0]}",
            "python": setup.PYTHON,
            **{name: version for name, _, version in wheels if version},
        }

    def why_not(self, target: str) -> str | None:
        """Why not: no runtime for the target on ARM64 Linux, or the set-up is missing."""
        if target not in arm64_worker.OPENERS:
            return f"no runtime for {target} files on ARM64 Linux"
        return setup.why_not_ready()

    def run(self, job: Job) -> Result:
        """Execute a job; JobError when the emulated process crashes or does not end in time."""
        with tempfile.TemporaryDirectory(prefix="pocketfocus-job-") as scratch:
            folder = Path(scratch)
            write_job(folder, job)
            try:
                self.hand_over(folder, job)
            except BaseException:
                self.close()
                raise
            return read_result(folder, job)

    def hand_over(self, folder: Path, job: Job) -> None:
        """Give a job to the worker and wait until it is done."""
        worker = self.worker = self.worker or start()
        pipe_in, pipe_out = worker.process.stdin, worker.process.stdout
        assert pipe_in is not None and pipe_out is not None
        with contextlib.suppress(BrokenPipeError):  # its end is told below
            pipe_in.write(f"{folder}\n")
            pipe_in.flush()
        limit_s, began = SLOWER * job.timeout_s, time.monotonic()
        late = threading.Timer(limit_s, worker.process.kill)
        late.start()
        try:
            for line in pipe_out:
                word, _, seconds = line.strip().partition(" ")
                if word == "done":
                    return
                if word == "first":
                    console.print(estimate(job, float(seconds)))
        finally:
            late.cancel()
        if time.monotonic() - began >= limit_s and worker.process.wait() == -signal.SIGKILL:
            raise JobError(f"{job.artifact} did not finish within {limit_s:g} s on emulated ARM64")
        raise JobError(f"{job.artifact}: the emulated ARM64 process {worker.last_words()}")

    def close(self) -> None:
        """End the worker, if there is one."""
        if self.worker is not None:
            self.worker.stop()
            self.worker = None

    def __del__(self) -> None:
        self.close()


def estimate(job: Job, seconds: float) -> str:
    """What is left of a job whose first call took `seconds`."""
    left = len(job.calls) - 1
    name = Path(job.artifact).name
    return f"{name} on emulated ARM64: {left} calls to go, about {left * seconds:.0f} s"


def start() -> Worker:
    """Start the emulated Python; it imports a runtime with its first job."""
    console.print("emulated ARM64 starts; its first .pte file waits about a minute for torch")
    with tempfile.NamedTemporaryFile("w", prefix="pocketfocus-arm64-", delete=False) as words:
        process = subprocess.Popen(
            setup.command(setup.home(), str(arm64_worker.__file__)),
            env=setup.environment(setup.home()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            bufsize=1,
        )
    return Worker(process, Path(words.name))


def connect(address: str, options: Options) -> tuple[Arm64, ...]:
    """The entry of the registry."""
    return (Arm64(),)
