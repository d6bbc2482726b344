"""What browsers measured, judged here, and turned into rows of bench.json and verify.json.

A browser sends times and its outputs; percentiles, PSNR and pass or fail are made on this host, by
the functions that every other device goes through.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pocketfocus.benchmarks.checks import (
    fitted_photos,
    load_parent,
    parent_stacks,
    student_inputs,
    to_bytes,
)
from pocketfocus.benchmarks.gates import Verdict, gate_of, gate_row, judge
from pocketfocus.benchmarks.golden import POSITIONS
from pocketfocus.benchmarks.latency import BENCH_FILE, Entry, row_of
from pocketfocus.benchmarks.repeat import NOT_FINITE, REPEAT_FILE, judged
from pocketfocus.benchmarks.repeat import row_of as repeat_row
from pocketfocus.benchmarks.verify import VERIFY_FILE, row_on, telling
from pocketfocus.mobile_harness.device import Arrays, Result
from pocketfocus.mobile_harness.devices import kind_of, origin
from pocketfocus.mobile_harness.options import Absent, Options
from pocketfocus.mobile_harness.web.files import Served, load_served
from pocketfocus.mobile_harness.web.measurement import Measurement, Repeated, Sustained
from pocketfocus.mobile_harness.web.server import await_visit
from pocketfocus.mobile_harness.web.visit import KIND
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Artifact, load_manifest
from pocketfocus.run.results import BenchRow, Origin, Trend, VerifyRow
from pocketfocus.run.rows import F, merge_rows

STRETCHES = 60
LEFT = "no browser sent it before the visit was over: measure all files on the page"
TREND_SHARE = 5  # a sustained run is slower at its end than in its first fifth, or not


class BrowserJudge:
    """Judges what browsers send of one run, and keeps it in the run's files of results."""

    positions: tuple[int, ...] = POSITIONS

    def __init__(self, served: Served, repeat: int = 0) -> None:
        self.served, self.repeat = served, repeat
        self.repeated: dict[tuple[str, ...], VerifyRow] = {}
        self._lock = threading.Lock()

    @cached_property
    def inputs(self) -> Arrays:
        """Return the first held-out photo and all positions, as of a student's job."""
        return student_inputs(fitted_photos(None, self.served.manifest.size)[:1])

    @cached_property
    def parents(self) -> dict[str, Arrays]:
        """Return the parents' stacks [N,9,3,H,W] at the golden positions, by `Gate.parent`."""
        student = load_parent(self.served.folder, self.served.manifest)
        calls = [(0, position) for position in self.positions]
        return parent_stacks(student, self.inputs, calls)

    def photo(self) -> bytes:
        """Return the golden photo [1,3,H,W], raw little-endian float32."""
        with self._lock:
            return self.inputs[0][0].astype("<f4").tobytes()

    def take(self, measured: Measurement) -> BenchRow:
        """Merge a measurement into bench.json; UserError when it tells of another file."""
        artifact = self.artifact(measured)
        fields = (artifact.target, artifact.precision, artifact.bytes, artifact.sha256)
        entry = Entry(artifact.name, "", *fields)
        times = (measured.load_ms, measured.first_ms, tuple(measured.times_ms))
        result = Result(None, *times, None, measured.threads)  # no browser tells a peak
        row = BenchRow(
            **row_of(entry, measured.device, [result]).given(),
            **origin_of(measured).given(),
            heap_mib=measured.heap_mib,
            browser_memory_mib=measured.memory_mib,
            sustained=trend(measured.sustained) if measured.sustained else None,
        )
        with self._lock:
            self.keep(BENCH_FILE, BenchRow, row)
            if self.repeat:
                verdict, about = repeat_verdict(measured.repeated), origin_of(measured)
                again = repeat_row(artifact, measured.device, about, self.repeat, verdict)
                self.keep(REPEAT_FILE, VerifyRow, again)
                self.repeated[again.place] = again
        return row

    def judge(self, measured: Measurement, outputs: bytes) -> VerifyRow:
        """Hold a browser's stacks (raw float32 [N,9,3,H,W]) against their parent's and merge the
        row into verify.json."""
        artifact = self.artifact(measured)
        gate = gate_of(artifact.precision, measured.device, artifact.recipe)
        with self._lock:
            parent, *_ = self.parents[gate.parent]
            stacks = np.frombuffer(outputs, "<f4").reshape(parent.shape).astype(np.float32)
            verdict = judge((stacks,), (parent,), gate.threshold_db)
            found = gate_row(artifact, measured.device, gate, verdict)
            row = VerifyRow(**found.given(), **origin_of(measured).given())
            seen = hashlib.sha256(to_bytes(self.inputs[0]).tobytes()).hexdigest()
            row = telling(row, seen, self.positions)
            self.keep(VERIFY_FILE, VerifyRow, row)
        return row

    def keep(self, name: str, kind: type[F], row: F) -> None:
        """Put a row in place of an older one of the same file, device and gate."""
        folder = self.served.folder
        merge_rows(folder / name, kind, [row], [], load_manifest(folder).hashes)

    def artifact(self, measured: Measurement) -> Artifact:
        """Return the file that was measured; UserError when it is not the one that was served."""
        found = self.served.artifacts.get(measured.artifact)
        if found is None:
            raise UserError(f"{measured.artifact} is none of the files served: load the page again")
        if found.sha256 != measured.sha256:
            raise UserError(
                f"{found.name} measured as {measured.sha256[:12]}, served as {found.sha256[:12]}: "
                "load the page again"
            )
        return found


def origin_of(measured: Measurement) -> Origin:
    """Return where a browser's row comes from."""
    return Origin(
        model=measured.phone.name,
        chip=measured.phone.chip or "",
        os=measured.phone.os,
        cores=measured.phone.cores,
        memory_gib=measured.phone.memory_gib,
        runtime=f"{measured.runtime} in {measured.phone.browser}",
    )


def repeat_verdict(found: Repeated | None) -> Verdict:
    """Judge calls that a browser made again and again; an older page makes none."""
    if found is None:
        return Verdict(None, "not-run", "the page made no further calls: load it again")
    if not found.finite:
        return NOT_FINITE
    return judged(Counter(found.results), sum(found.results.values()), found.grown_mib)


def trend(sustained: Sustained) -> Trend:
    """Return what a browser's calls without a pause say of throttling."""
    times = np.asarray(sustained.times_ms)
    share = max(1, len(times) // TREND_SHARE)
    first, last = float(np.median(times[:share])), float(np.median(times[-share:]))
    parts = np.array_split(np.arange(len(times)), min(len(times), STRETCHES))
    ends = np.cumsum(times) / 1000
    return Trend(
        seconds=sustained.seconds,
        runs=len(times),
        first_p50_ms=round(first, 3),
        last_p50_ms=round(last, 3),
        slower=round(last / first, 3) if first > 0 else None,
        course=tuple(
            (round(float(ends[part[-1]]), 2), round(float(np.median(times[part])), 3))
            for part in parts
        ),
    )


class Sent(NamedTuple):
    """Rows of what browsers sent, and of what none did: of bench.json; of verify.json and
    repeat.json."""

    bench: list[BenchRow]
    verify: list[VerifyRow]


def visited(
    device: str, folder: Path, options: Options, say: Callable[[str], None], repeat: int = 0
) -> Sent:
    """Return what a device that comes by itself sent, which called each file `repeat` times more,
    and that others are left; nothing where none came, and for other devices."""
    if not kind_of(device).visits_itself:
        return Sent([], [])
    again: list[BrowserJudge] = []

    def make_judge(served: Served) -> BrowserJudge:
        again.append(BrowserJudge(served, repeat))
        return again[-1]

    rows = await_visit(folder, device.partition(":")[2], options, say, make_judge)
    if not rows:
        return Sent([], [])
    repeated = [row for judge in again for row in judge.repeated.values()]
    bench, verify = [bench for bench, _ in rows], [verify for _, verify in rows]
    left = keep_left(folder, {row.artifact for row in verify})
    return Sent([*bench, *left.bench], [*verify, *left.verify, *repeated])


def keep_left(folder: Path, sent: Collection[str]) -> Sent:
    """Return the rows of files that no browser `sent`, and keep them in place of earlier ones."""
    served, nowhere = load_served(folder), Absent(KIND, LEFT)
    left = Sent([], [])
    for file in served.artifacts.values():
        if file.name not in sent:
            entry = Entry(file.name, "", file.target, file.precision, file.bytes, file.sha256)
            timed, about = row_of(entry, KIND, [], LEFT), origin(nowhere, file.target).given()
            left.bench.append(BenchRow(**timed.given(), **about))
            verdict = Verdict(None, "not-run", LEFT)
            gate = gate_of(file.precision, KIND, file.recipe)
            left.verify.append(row_on(gate_row(file, KIND, gate, verdict), nowhere))
    hashes = served.manifest.hashes
    merge_rows(folder / BENCH_FILE, BenchRow, left.bench, [KIND], hashes)
    merge_rows(folder / VERIFY_FILE, VerifyRow, left.verify, [KIND], hashes)
    return left
