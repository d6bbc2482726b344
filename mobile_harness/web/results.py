"""What a browser measured, checked, judged here, and turned into rows of bench.json, verify.json.

The browser sends times and its outputs; percentiles, PSNR and pass or fail are made on this host,
by the functions that every other device goes through.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pocketfocus.benchmarks.golden import POSITIONS
from pocketfocus.benchmarks.latency import BENCH_FILE, Entry, row_of
from pocketfocus.benchmarks.verify import (
    VERIFY_FILE,
    Stacks,
    fitted_photos,
    gate_of,
    gate_row,
    judge,
    load_parent,
    parent_stacks,
)
from pocketfocus.mobile_harness.device import Result
from pocketfocus.mobile_harness.web.files import Served
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import Row, merge_rows
from pocketfocus.run.manifest import MANIFEST_FILE, Artifact

MAX_CALLS = 50_000
STRETCHES = 60
TREND_SHARE = 5  # a sustained run is slower at its end than in its first fifth, or not

Text = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]*$"
    ),
]
Mebibytes = Annotated[float, Field(gt=0, le=1 << 20, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0, le=3_600_000, allow_inf_nan=False)]


class Checked(BaseModel):
    """Nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Phone(Checked):
    """What the browser tells of where it runs; `memory_gib` is rounded and capped by browsers."""

    name: Text
    os: Text
    browser: Text
    chip: Text | None = None
    cores: Annotated[int, Field(ge=1, le=1024)] | None = None
    memory_gib: Annotated[float, Field(gt=0, le=4096)] | None = None


class Sustained(Checked):
    """Calls without a pause for `seconds`, in order."""

    seconds: Annotated[float, Field(gt=0, le=3600)]
    times_ms: Annotated[list[Milliseconds], Field(min_length=1, max_length=MAX_CALLS)]


class Measurement(Checked):
    """One file measured in one browser: the body of a POST.

    `heap_mib` is the peak of the runtime's WebAssembly heap, `memory_mib` the whole page's as the
    browser tells it.
    """

    artifact: Annotated[str, StringConstraints(max_length=200)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    backend: Literal["wasm", "webgpu"]
    threads: Annotated[int, Field(ge=1, le=256)]
    runtime: Text
    phone: Phone
    load_ms: Milliseconds
    first_ms: Milliseconds
    times_ms: Annotated[list[Milliseconds], Field(min_length=1, max_length=MAX_CALLS)]
    sustained: Sustained | None = None
    heap_mib: Mebibytes | None = None
    memory_mib: Mebibytes | None = None

    @property
    def device(self) -> str:
        """The `device` of its rows: whose it is, and what ran the file there."""
        return f"{self.phone.name}, {self.phone.browser} ({self.backend})"


class Host:
    """The golden inputs of a run, and the run's files of results; safe to call from threads."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._lock = threading.Lock()

    @cached_property
    def photo(self) -> Stacks:
        """The first held-out photo, [1,3,H,W] float32 in [-1, 1]."""
        return fitted_photos(None, self.served.manifest.size)[:1]

    @cached_property
    def parents(self) -> dict[str, Stacks]:
        """The student's and the captured graph's stacks [N,9,3,H,W] at the golden positions."""
        student = load_parent(self.served.folder, self.served.manifest)
        return parent_stacks(student, self.photo, [(0, position) for position in POSITIONS])

    def inputs(self) -> bytes:
        """The golden photo's raw little-endian float32."""
        with self._lock:
            return self.photo.astype("<f4").tobytes()

    def take(self, measured: Measurement) -> Row:
        """Merge a measurement into bench.json; UserError when it tells of another file."""
        artifact = self.artifact(measured)
        entry = Entry(artifact.name, "", artifact.target, artifact.precision, artifact.bytes)
        times = (measured.load_ms, measured.first_ms, tuple(measured.times_ms))
        row = row_of(entry, measured.device, [Result(None, *times, 0.0, measured.threads)])
        row |= {"status": "measured", "why": "", **origin(measured)}  # no browser tells a peak
        row |= {"heap_mib": measured.heap_mib, "browser_memory_mib": measured.memory_mib}
        row |= {"sustained": trend(measured.sustained)}
        with self._lock:
            self.keep(BENCH_FILE, row)
        return row

    def judge(self, measured: Measurement, outputs: bytes) -> Row:
        """Hold a browser's stacks (raw float32 [N,9,3,H,W]) against their parent's and merge the
        row into verify.json."""
        artifact = self.artifact(measured)
        gate = gate_of(artifact.precision, measured.device, artifact.recipe)
        with self._lock:
            parent = self.parents[gate.parent]
            stacks = np.frombuffer(outputs, "<f4").reshape(parent.shape).astype(np.float32)
            verdict = judge(stacks, parent, gate.threshold_db)
            about = (artifact.name, artifact.target, artifact.precision, measured.device)
            row = gate_row(*about, gate.name, gate.threshold_db, verdict) | origin(measured)
            self.keep(VERIFY_FILE, row)
        return row

    def keep(self, name: str, row: Row) -> None:
        """Put a row in place of an older one of the same file, device and gate."""
        merge_rows(self.served.folder / name, [row], [], self.served.folder / MANIFEST_FILE)

    def artifact(self, measured: Measurement) -> Artifact:
        """The file that was measured; UserError when it is not the one that was served."""
        found = self.served.artifacts.get(measured.artifact)
        if found is None:
            raise UserError(f"{measured.artifact} is none of the files served: load the page again")
        if found.sha256 != measured.sha256:
            raise UserError(
                f"{found.name} measured as {measured.sha256[:12]}, served as {found.sha256[:12]}: "
                "load the page again"
            )
        return found


def origin(measured: Measurement) -> Row:
    """The fields of a row that say where it comes from."""
    return {
        "model": measured.phone.name,
        "chip": measured.phone.chip or "",
        "os": measured.phone.os,
        "cores": measured.phone.cores,
        "memory_gib": measured.phone.memory_gib,
        "runtime": f"{measured.runtime} in {measured.phone.browser}",
        "sha256": measured.sha256,
    }


def trend(sustained: Sustained | None) -> dict[str, Any] | None:
    """p50 of the first and the last fifth of a sustained run, how many times slower it got, and
    its course: `[seconds, ms]`, the median of at most 60 equal stretches."""
    if sustained is None:
        return None
    times = np.asarray(sustained.times_ms)
    share = max(1, len(times) // TREND_SHARE)
    first, last = float(np.median(times[:share])), float(np.median(times[-share:]))
    parts = np.array_split(np.arange(len(times)), min(len(times), STRETCHES))
    ends = np.cumsum(times) / 1000
    return {
        "seconds": sustained.seconds,
        "runs": len(times),
        "first_p50_ms": round(first, 3),
        "last_p50_ms": round(last, 3),
        "slower": round(last / first, 3) if first > 0 else None,
        "course": [
            [round(float(ends[part[-1]]), 2), round(float(np.median(times[part])), 3)]
            for part in parts
        ],
    }
