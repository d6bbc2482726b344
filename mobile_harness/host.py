"""This host as a device: every job in a fresh process, so that its figures are the file's own.

A job's folder holds photos.npy and job.json; the worker adds result.json and, where wanted,
outputs.npy. All of it is deleted when the result has been read.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pocketfocus.export.targets import get_target
from pocketfocus.mobile_harness.device import PYTORCH, Job, JobError, Result
from pocketfocus.mobile_harness.doctor import processor
from pocketfocus.mobile_harness.options import Options
from pocketfocus.run.errors import UserError
from pocketfocus.run.processes import death, run_module

WORKER = "pocketfocus.mobile_harness.worker"
RUNTIMES = ("torch", "executorch", "onnxruntime", "coremltools")


@dataclass(frozen=True)
class Host:
    """The machine pocketfocus runs on."""

    name: str = "host"

    def describe(self) -> dict[str, str]:
        """Processor, cores, memory, system, and versions of the runtimes."""
        return {
            "chip": processor(),
            "cores": str(psutil.cpu_count(logical=False) or os.cpu_count()),
            "memory": f"{psutil.virtual_memory().total / 1024**3:.1f} GiB",
            "os": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in RUNTIMES},
        }

    def why_not(self, target: str) -> str | None:
        """What the target says about this machine; eager PyTorch always runs."""
        return None if target == PYTORCH else get_target(target).cannot_run()

    def run(self, job: Job) -> Result:
        """Run a job in a fresh process; on Ctrl-C or timeout the process is killed.

        Raises JobError when the process crashes or does not end in time, UserError when the
        artifact cannot be opened.
        """
        with tempfile.TemporaryDirectory(prefix="pocketfocus-job-") as scratch:
            folder = Path(scratch)
            write_job(folder, job)
            try:
                ended = run_module(WORKER, scratch, timeout_s=job.timeout_s)
            except subprocess.TimeoutExpired:
                raise JobError(
                    f"{job.artifact} did not finish within {job.timeout_s:g} s and was stopped"
                ) from None
            if ended.returncode != 0:
                raise JobError(f"{job.artifact}: the process that ran it {death(ended)}")
            return read_result(folder, job)


def device() -> Host:
    """This host."""
    return Host()


def connect(address: str, options: Options) -> tuple[Host, ...]:
    """The entry of the registry."""
    return (device(),)


def write_job(folder: Path, job: Job) -> None:
    """Leave a job for a worker: photos.npy and job.json."""
    np.save(folder / "photos.npy", np.ascontiguousarray(job.photos, dtype=np.float32))
    fields = {
        "artifact": job.artifact,
        "target": job.target,
        "calls": [list(call) for call in job.calls],
        "warmup": job.warmup,
        "runs": job.runs,
        "budget_s": job.budget_s,
        "threads": job.threads,
        "want_outputs": job.want_outputs,
    }
    (folder / "job.json").write_text(json.dumps(fields), encoding="utf-8")


def read_result(folder: Path, job: Job) -> Result:
    """What a worker left; JobError or UserError when that is an error."""
    report = folder / "result.json"
    if not report.is_file():
        raise JobError(f"{job.artifact}: the process that ran it left no result")
    fields: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    if "mistake" in fields:
        raise UserError(fields["mistake"])
    if "error" in fields:
        raise JobError(f"{job.artifact}: {fields['error']}")
    outputs = np.load(folder / "outputs.npy") if job.want_outputs else None
    return Result(
        outputs=outputs,
        load_ms=fields["load_ms"],
        first_ms=fields["first_ms"],
        times_ms=tuple(fields["times_ms"]),
        peak_rss_mib=fields["peak_rss_mib"],
        threads=fields["threads"],
    )
