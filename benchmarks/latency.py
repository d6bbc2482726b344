"""Load, first call, latency percentiles, memory and size of every file on a device.

Noise of a shared machine should hit all alike, so every artifact is measured in several short
rounds, each in a fresh process, over all artifacts; every other round goes backwards, so that a
steady drift cancels. Few calls are one round, and more calls are more rounds. The reference, much
slower, is measured once between the rounds, in its own way of sampling and as published (25 steps
with guidance). What renders is
visited once, with one tile of a photo, after the rounds: it is too quick for a drift to matter. So
are both files of a pair, with a whole photo, of which they make nine frames: what a user waits for;
and every file once with a photo of each size that is clearly larger than its usual one, for the
memory that this takes. Timed calls of all rounds are pooled; load and first call are the median
over rounds, memory the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pocketfocus.benchmarks.checks import (
    SHOWN,
    Pixels,
    fitted_photos,
    load_parent,
    save_stacks,
    student_inputs,
    to_bytes,
)
from pocketfocus.benchmarks.rendering import (
    FRAMES_BUDGET_S,
    photo_inputs,
    render_check,
    why_no_frames,
)
from pocketfocus.benchmarks.samples import TIMES_FILE, TimesRow
from pocketfocus.mobile_harness.device import PYTORCH, Arrays, Call, Device, Job, JobError, Result
from pocketfocus.mobile_harness.devices import origin, takes_sizes
from pocketfocus.mobile_harness.host import Host
from pocketfocus.models.places import find_places
from pocketfocus.models.sampling import PUBLISHED
from pocketfocus.run.constants import RUNS, RUNS_WITH_PUBLISHED, Size, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import size_bytes
from pocketfocus.run.manifest import (
    Manifest,
    Pair,
    check_artifact,
    load_exported,
    makes_stacks,
    renders,
)
from pocketfocus.run.progress import say, track
from pocketfocus.run.results import AtSize, BenchRow, Figures, Measured, idle
from pocketfocus.run.rows import merge_rows

BENCH_FILE = "bench.json"
REFERENCE_STACK_FILE = "reference.npz"
ROUND_RUNS = 12  # timed calls of a file at least, if there are several rounds
REFERENCE_RUNS = 2
AS_PUBLISHED = f"{PUBLISHED.steps}/{PUBLISHED.guidance:g}/{PUBLISHED.temperature:g}"
REFERENCE, SAMPLED_AS_PUBLISHED = "reference", f"reference@{PUBLISHED.steps}"
POSITION = SHOWN[1]  # the network does the same work at any position
BUDGET_S = 15.0  # of timed calls a visit: a slow machine makes fewer runs, never fewer than one
ROUND_BUDGET_S = BUDGET_S / 2  # in each of the rounds
USUAL = "int8"  # of the precisions, of which nine frames are measured
LARGER = 1.1  # times the usual pixels: for fewer, an estimate of memory will do
TIMEOUT_S = 3600.0  # the published reference takes many minutes a stack on a CPU


Makes = Literal["stack", "tile", "frames"]


@dataclass(frozen=True)
class Entry:
    """One thing to measure: `artifact` as in the rows, `spec` as in a job, `bytes` if known, the
    hash of what is in the run, the file that renders of nine frames, and the size of photos where
    it is not the usual one."""

    artifact: str
    spec: str
    target: str
    precision: str
    bytes: int | None
    sha256: str | None = None
    render: str = ""
    size: Size | None = None

    @property
    def makes(self) -> Makes:
        """What a call makes."""
        if self.render:
            return "frames"
        return "tile" if renders(self.artifact) else "stack"

    @property
    def given(self) -> tuple[Makes, Size | None]:
        """What it is called with, in `Given`."""
        return self.makes, self.size


Given = Mapping[tuple[Makes, Size | None], tuple[Arrays, Call]]
"""What is called, and how, by what a call makes and of which size if not the usual one."""


@dataclass(frozen=True)
class Visit:
    """One turn of an entry: its calls in one fresh process."""

    entry: Entry
    runs: int
    warmup: int
    budget_s: float = BUDGET_S


@dataclass(frozen=True)
class Ratio:
    """How many times faster an artifact's p50 is than the eager models; None if unknown."""

    artifact: str
    device: str
    to_reference: float | None = None
    to_published: float | None = None
    to_student: float | None = None


@dataclass(frozen=True)
class Bench:
    """What to measure, and how often.

    Attributes:
        reference: a spec of `load_reference`; None to leave it out.
        runs: timed calls of every file and of the student; see `why_not` for what few leave out.
        warmup: untimed calls before those, in every round.
        threads: CPU threads; None for the device's own default.
        photos: as of `Verification`; only the one that verify keeps is used.
    """

    reference: str | None = "default"
    runs: int = RUNS
    warmup: int = 3
    threads: int | None = None
    photos: Sequence[Path] | None = None

    def check(self) -> None:
        """Raise UserError for counts that measure nothing."""
        few = self.runs < 1 or self.warmup < 0
        if few or (self.threads is not None and self.threads < 1):
            raise UserError(
                f"runs {self.runs}, warmup {self.warmup}, threads {self.threads}: at least 1 run "
                "and 1 thread are needed, and warmup is 0 or more"
            )


DEFAULT = Bench()


def bench_run(folder: Path, device: Device, how: Bench = DEFAULT) -> list[BenchRow]:
    """Measure every artifact of a run, the eager student and the reference; write bench.json.

    Rows of other devices stay in the file. What the device cannot execute keeps its `bytes` and has
    null for the rest. After 15 s of timed calls a visit ends, a round after half of that, and
    `runs` tells how many there were; every call's time is kept in bench.samples.json. Raises
    UserError for a missing or damaged file, and for a run of none.
    """
    how.check()
    shown = None if how.photos is None else [how.photos[SHOWN[0]]]
    manifest = load_exported(folder)
    given = given_to(folder, manifest, shown)
    eager = device.why_not(PYTORCH) is None
    baselines = reference_entries(how.reference) if eager and how.reference is not None else []
    entries = list_entries(folder, manifest)
    larger = larger_entries(manifest, entries) if takes_sizes(device) else []
    every = (*baselines, *entries, *larger)
    reasons = {e: why for e in every if (why := why_not(device, e, how.runs)) is not None}
    runnable = [e for e in (*entries, *larger) if e not in reasons]
    usual = [e for e in runnable if e.given == ("stack", None)]
    plan = schedule(usual, how.runs, how.warmup)
    slow = [entry for entry in baselines if entry not in reasons]
    visits = [Visit(entry, 1 if n else REFERENCE_RUNS, 0) for n, entry in enumerate(slow)]
    middle = (len(plan) + 1) // 2
    plan[middle:middle] = visits
    plan += [Visit(e, how.runs, how.warmup) for e in runnable if e.makes == "tile"]
    plan += [Visit(e, how.runs, 0) for e in runnable if e.makes == "frames"]
    plan += [Visit(e, 1, 0) for e in runnable if e.size]
    measured, crashed = measure(device, plan, given, how.threads)
    rows = [
        complete_row(device, entry, crashed, reasons.get(entry), given, measured)
        for entry in [*baselines, *entries]
    ]
    if eager:
        photo = to_bytes(given["stack", None][0][0][0, 0])
        keep_reference_stack(folder, baselines[0] if baselines else None, measured, photo)
    merge_rows(folder / BENCH_FILE, BenchRow, rows, [device.name], manifest.hashes)
    keep_times(folder, device.name, manifest, measured)
    return rows


def complete_row(
    device: Device,
    entry: Entry,
    crashed: Mapping[Entry, str],
    reason: str | None,
    given: Given,
    measured: Mapping[Entry, Sequence[Result]],
) -> BenchRow:
    """Return an entry's row, with where it is from, and of which photo or sizes else; `reason` is
    why it was not to be measured, if it was not."""
    crash = crashed.get(entry)
    found = row_of(entry, device.name, measured.get(entry, []), crash or reason, crash is not None)
    row = BenchRow(**found.given(), **origin(device, entry.target).given())
    more: dict[str, object] = {}
    if entry.makes == "frames":
        more["photo"] = given[entry.given][0][0].shape[-2:]
    sizes = sizes_of(entry, measured, crashed)
    return row.model_copy(update=more | ({"sizes": sizes} if sizes else {}))


def sizes_of(
    entry: Entry, measured: Mapping[Entry, Sequence[Result]], crashed: Mapping[Entry, str]
) -> tuple[AtSize, ...]:
    """Return what a file takes with photos of larger sizes, or why it died of them, as far as that
    was tried."""
    found = []
    for other in (*measured, *crashed):
        if other.size and other.artifact == entry.artifact:
            made, died = pooled(measured.get(other, [])), crashed.get(other)
            row = AtSize(size=other.size, p50_ms=made.p50_ms, peak_rss_mib=made.peak_rss_mib)
            found.append(row if died is None else row.model_copy(update={"why": died}))
    return tuple(found)


def keep_times(
    folder: Path, device: str, manifest: Manifest, measured: Mapping[Entry, Sequence[Result]]
) -> None:
    """Write every call that the rows of a device were made of beside bench.json."""
    kept = [
        TimesRow(
            artifact=entry.artifact,
            target=entry.target,
            precision=entry.precision,
            device=device,
            sha256=entry.sha256,
            rounds_ms=tuple(result.times_ms for result in results),
        )
        for entry, results in measured.items()
        if entry.size is None
    ]
    merge_rows(folder / TIMES_FILE, TimesRow, kept, [device], manifest.hashes)


def given_to(folder: Path, manifest: Manifest, shown: Sequence[Path] | None) -> Given:
    """Return what the files of a run are called with, of the photo `shown` where one is named."""
    call = (0, POSITION)
    given: dict[tuple[Makes, Size | None], tuple[Arrays, Call]] = {
        ("stack", size): (student_inputs(fitted_photos(shown, size or manifest.size)[:1]), call)
        for size in (None, *larger_sizes(manifest))
    }
    if manifest.render and manifest.render.files:
        check = render_check(load_parent(folder, manifest))
        given["tile", None] = (check.inputs, check.calls[0])
        given["frames", None] = (photo_inputs(shown), call)
    return given


def larger_sizes(manifest: Manifest) -> list[Size]:
    """Return the sizes of photos with clearly more pixels than the usual one."""
    usual = math.prod(manifest.size)
    return [size for size in manifest.sizes if math.prod(size) > LARGER * usual]


def larger_entries(manifest: Manifest, entries: Sequence[Entry]) -> list[Entry]:
    """Return the files that take such sizes, once for each."""
    known = {entry.artifact: entry for entry in entries}
    return [
        replace(known[artifact.name], size=size)
        for artifact in manifest.artifacts
        for size in larger_sizes(manifest)
        if artifact.takes(size)
    ]


def why_not(device: Device, entry: Entry, runs: int) -> str | None:
    """Return why an entry is not measured, since a device cannot or beside so few runs of the files
    nobody waits for it; None where it is."""
    reason, least = device.why_not(entry.target), RUNS_WITH_PUBLISHED
    if reason is None and entry.makes == "frames":
        return why_no_frames(device)
    if reason is None and entry.artifact == SAMPLED_AS_PUBLISHED and runs < least:
        steps = f"{PUBLISHED.steps} steps"
        return f"a stack in {steps} takes as long as a third of all else: bench --runs {least}"
    return reason


def keep_reference_stack(
    folder: Path,
    baseline: Entry | None,
    measured: Mapping[Entry, Sequence[Result]],
    photo: Pixels,
) -> None:
    """Write the reference's stack, uint8 `reference` [9,S,S,3], and the `photo` [S,S,3] that it was
    made of, for the report: it shows the stack where verify keeps that photo too. Without a
    reference an older one goes."""
    (folder / REFERENCE_STACK_FILE).unlink(missing_ok=True)
    results = measured.get(baseline, []) if baseline else []
    if results and results[0].outputs is not None:
        stack = to_bytes(results[0].outputs[0][0])
        save_stacks(folder / REFERENCE_STACK_FILE, {"photo": photo, "reference": stack})


def list_entries(folder: Path, manifest: Manifest) -> list[Entry]:
    """Return the eager student, every artifact, hashes checked, and a pair of them a target."""
    student = folder / "student"
    weights = sum(size_bytes(path) for path in student.glob("*.safetensors"))
    entries = [Entry("student", str(student), PYTORCH, "fp32", weights, manifest.student_sha256)]
    for artifact in manifest.files:
        path = check_artifact(folder, artifact)
        fields = (artifact.target, artifact.precision, size_bytes(path), artifact.sha256)
        entries.append(Entry(artifact.name, str(path), *fields))
    known = {entry.artifact: entry for entry in entries}
    for pair in chosen_pairs(manifest):
        one, other = known[pair.student.name], known[pair.render.name]
        size = (one.bytes or 0) + (other.bytes or 0)
        fields = (one.target, one.precision, size, pair.sha256)
        entries.append(Entry(pair.name, one.spec, *fields, other.spec))
    return entries


def chosen_pairs(manifest: Manifest) -> list[Pair]:
    """Return one pair of each target, the int8 one where there is one: nine frames by the others
    differ by what a student's file takes, which has a row of its own."""
    found: dict[str, Pair] = {}
    for pair in manifest.pairs:
        target = pair.student.target
        if target not in found or pair.student.precision == USUAL:
            found[target] = pair
    return list(found.values())


def reference_entries(spec: str) -> list[Entry]:
    """Return the pipeline sampled in its own way and, where that is another, as published.

    Its size is known when its weights lie in a local folder.
    """
    from pocketfocus.models.loading import default_sampling

    size = sum(map(size_bytes, find_places(spec).weights)) or None
    entries = [Entry(REFERENCE, f"reference:{spec}", PYTORCH, "fp32", size)]
    if default_sampling(spec) != PUBLISHED:
        entries.append(
            Entry(SAMPLED_AS_PUBLISHED, f"reference:{spec}@{AS_PUBLISHED}", PYTORCH, "fp32", size)
        )
    return entries


def schedule(entries: Sequence[Entry], runs: int, warmup: int) -> list[Visit]:
    """Plan rounds over all entries, every other one backwards; they share `runs` among them."""
    plan = []
    rounds = max(1, runs // ROUND_RUNS)
    for number in range(rounds):
        share = runs // rounds + (number < runs % rounds)
        order = entries if number % 2 == 0 else entries[::-1]
        plan += [Visit(entry, share, warmup, ROUND_BUDGET_S) for entry in order if share]
    return plan


def measure(
    device: Device, plan: Sequence[Visit], given: Given, threads: int | None
) -> tuple[dict[Entry, list[Result]], dict[Entry, str]]:
    """Run every visit; an entry that crashes once has no result, says why, and is not visited
    again."""
    measured: dict[Entry, list[Result]] = {}
    crashed: dict[Entry, str] = {}
    for visit in track(plan, "measuring", len(plan)):
        if visit.entry in crashed:
            continue
        try:
            result = _run(device, visit, given, threads)
        except UserError as error:
            if visit.entry.target == PYTORCH and not isinstance(error, JobError):
                raise
            say(f"{visit.entry.artifact} was not measured: {error}")
            crashed[visit.entry] = str(error)
            measured.pop(visit.entry, None)
        else:
            measured.setdefault(visit.entry, []).append(result)
    return measured, crashed


def row_of(
    entry: Entry,
    device: str,
    results: Sequence[Result],
    why_not: str | None = None,
    failed: bool = False,
) -> Measured:
    """Return what the pooled rounds of an entry say; nulls when there is none."""
    row = Measured(
        artifact=entry.artifact,
        target=entry.target,
        precision=entry.precision,
        device=device,
        **dict(pooled(results)),
        bytes=entry.bytes,
        status="measured" if results else "failed" if failed else "not-run",
        why=why_not or "",
    )
    notes = results[-1].notes if results else None
    more = {"sha256": entry.sha256, "notes": notes}
    return row.model_copy(update={name: value for name, value in more.items() if value})


def pooled(results: Sequence[Result]) -> Figures:
    """Return the figures of all rounds together."""
    if not results:
        return Figures()
    times = [ms for result in results for ms in result.times_ms]
    p50, p90, p99 = (round(float(ms), 3) for ms in np.percentile(times, (50, 90, 99)))
    peaks = [r.peak_rss_mib for r in results if r.peak_rss_mib]
    return Figures(
        threads=results[0].threads,
        load_ms=round(float(np.median([r.load_ms for r in results])), 3),
        first_ms=round(float(np.median([r.first_ms for r in results])), 3),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        runs=len(times),
        peak_rss_mib=round(max(peaks), 3) if peaks else None,
    )


def unmeasured(rows: Sequence[BenchRow]) -> list[str]:
    """Say what could not be measured: a process died, maybe at a larger size alone; any makes the
    exit code 2, and so does each device that measured nothing at all."""
    died = [f"{row.artifact}: {row.why}" for row in rows if row.status == "failed"]
    died += [
        f"{row.artifact} at {size_text(each.size)}: {each.why}"
        for row in rows
        for each in row.sizes
        if each.why
    ]
    return [*died, *idle(rows)]


def ratios(rows: Sequence[BenchRow]) -> list[Ratio]:
    """Return how much faster (p50, same device) every artifact that makes stacks is than the
    models."""
    p50 = {(row.device, row.artifact): row.p50_ms for row in rows}

    def against(device: str, other: str, fast: float) -> float | None:
        slow = p50.get((device, other))
        return None if slow is None else slow / fast

    return [
        Ratio(
            row.artifact,
            row.device,
            against(row.device, REFERENCE, row.p50_ms),
            against(row.device, SAMPLED_AS_PUBLISHED, row.p50_ms),
            against(row.device, "student", row.p50_ms),
        )
        for row in rows
        if row.p50_ms is not None
        and row.artifact not in (REFERENCE, SAMPLED_AS_PUBLISHED)
        and makes_stacks(row.artifact)
    ]


def _run(device: Device, visit: Visit, given: Given, threads: int | None) -> Result:
    job, render = _job(visit, given, threads), visit.entry.render
    if not render:
        return device.run(job)
    assert isinstance(device, Host)  # or there is a reason in `why_not`
    return device.frames(replace(job, budget_s=FRAMES_BUDGET_S), render)


def _job(visit: Visit, given: Given, threads: int | None) -> Job:
    inputs, call = given[visit.entry.given]
    return Job(
        artifact=visit.entry.spec,
        target=visit.entry.target,
        inputs=inputs,
        calls=[call],
        warmup=visit.warmup,
        runs=visit.runs,
        budget_s=visit.budget_s,
        threads=threads,
        want_outputs=visit.entry.artifact == REFERENCE,
        timeout_s=TIMEOUT_S,
    )
