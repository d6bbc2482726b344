"""This host as a device: every job in a fresh process, so that its figures are the file's own."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import metadata

import psutil

from pocketfocus.export.targets import TARGETS, Target, get_target
from pocketfocus.mobile_harness.device import HOST, PYTORCH, Job, JobError, Result
from pocketfocus.mobile_harness.doctor import processor
from pocketfocus.mobile_harness.options import Options
from pocketfocus.run.processes import Answer, Work, Worker, WorkFailed, run_work

WORKER = "pocketfocus.mobile_harness.worker:run_file"
FRAMES_WORKER = "pocketfocus.mobile_harness.frames:run_frames"

_SHARED = threading.local()


@contextmanager
def one_process(threads: int | None = None, worker: Worker | None = None) -> Iterator[None]:
    """Let the jobs of this thread share a process, `worker` or one of their own, since imports take
    longer than many of them; it starts anew after a job in which it died. Times and memory are then
    not a file's own.

    `threads` are those of jobs that name none: runtimes of several processes that wait for each
    other on the same cores are slow.
    """
    with Worker() if worker is None else nullcontext(worker) as shared:
        _SHARED.worker, _SHARED.threads = shared, threads
        try:
            yield
        finally:
            del _SHARED.worker, _SHARED.threads


@dataclass(frozen=True)
class Host:
    """The machine pocketfocus runs on."""

    name: str = HOST

    def describe(self) -> dict[str, str]:
        """Return processor, cores, memory, system, and versions of the runtimes."""
        runtimes = ("torch", *(get_target(name).runtime for name in TARGETS))
        return {
            "chip": processor(),
            "cores": str(psutil.cpu_count(logical=False) or os.cpu_count()),
            "memory": f"{psutil.virtual_memory().total / 1024**3:.1f} GiB",
            "os": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": platform.python_version(),
            **{name: version for name in runtimes if (version := version_of(name))},
        }

    def why_not(self, target: str) -> str | None:
        """Return what the target says about this machine; eager PyTorch always runs."""
        return None if target == PYTORCH else get_target(target).cannot_run()

    def run(self, job: Job) -> Result:
        """Run a job in a fresh process, but see `one_process`; on Ctrl-C or timeout it is killed.

        Raises JobError when the process crashes or does not end in time, UserError when the
        artifact cannot be opened.
        """
        run = run_work
        if hasattr(_SHARED, "worker"):
            run, job = _SHARED.worker.run, replace(job, threads=job.threads or _SHARED.threads)
        return done(run, job, work_of(job, self.call(job.target)))

    def frames(self, job: Job, render: str) -> Result:
        """Run a job that makes the nine frames of photos with a student's file and the one that
        renders, `render`, in a fresh process; errors as of `run`."""
        work = work_of(job, FRAMES_WORKER)
        return done(run_work, job, replace(work, arguments={**work.arguments, "render": render}))

    def call(self, target: str) -> str:
        """Return the function that does a job with a file of `target`, in the fresh process."""
        return WORKER


@dataclass(frozen=True, kw_only=True)
class Fallback(Host):
    """This host, with another program in the place of one target's own runtime; other targets are
    the host's. What it proves is what a file means: its times are no latencies.

    Attributes:
        target: the target.
        work: the function that does a job with a file of it, "module:function".
        package: the package that executes these files, and what it does so as.
    """

    target: Target
    work: str
    package: tuple[str, str]

    def describe(self) -> dict[str, str]:
        """Return the host's facts, with that package in the place of the target's runtime."""
        about, (package, role) = super().describe(), self.package
        if version := about.get(package):
            about[self.target.runtime] = f"{package} {version} ({role})"
        return about

    def why_not(self, target: str) -> str | None:
        """Return why not: what writes the target's files, and reads them here, is missing."""
        own = target == self.target.name
        return self.target.cannot_write() if own else super().why_not(target)

    def call(self, target: str) -> str:
        """Take that program for files of the target."""
        return self.work if target == self.target.name else super().call(target)


def version_of(package: str) -> str:
    """Return the version of a package; "" where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def connect(address: str, options: Options) -> tuple[Host, ...]:
    """Return the entry of the registry."""
    return (Host(),)


def work_of(job: Job, call: str) -> Work:
    """Return the work of a job for the function `call`; the k-th table of inputs is named `k`."""
    return Work(call, job.arguments(), {str(k): table for k, table in enumerate(job.inputs)})


def done(run: Callable[..., Answer], job: Job, work: Work) -> Result:
    """Do a job's work by `run`; JobError when the process crashes or does not end in time."""
    try:
        answer = run(work, timeout_s=job.timeout_s)
    except WorkFailed as error:
        raise JobError(f"{job.artifact}: {error}") from error
    fields = {**answer.fields, "times_ms": tuple(answer.fields["times_ms"])}
    return Result(outputs=tuple(answer.arrays.values()) or None, **fields)
