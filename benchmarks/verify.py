"""Execute every file of a run, and hold what it makes against its own parent: verify.json."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from pocketfocus.benchmarks.checks import (
    Beside,
    Check,
    Pixels,
    checks_beside,
    is_of_networks,
    load_parent,
    save_shown,
    saved_check,
    shown,
    student_check,
    to_bytes,
)
from pocketfocus.benchmarks.gates import (
    CAPTURE_GATE,
    CAPTURED_GRAPH,
    SAME_FILE,
    SAME_FILE_DB,
    Gate,
    Verdict,
    gate_of,
    gate_row,
    judge,
    own_rows,
    parity_rows,
)
from pocketfocus.benchmarks.rendering import render_check
from pocketfocus.mobile_harness.device import HOST, PYTORCH, Arrays, Device, Job, Result
from pocketfocus.mobile_harness.devices import is_timed, origin, takes_sizes
from pocketfocus.mobile_harness.host import Host, one_process
from pocketfocus.run.constants import FRAMES, Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Artifact, Manifest, check_artifact, load_exported, renders
from pocketfocus.run.metrics import PEAK
from pocketfocus.run.paths import below
from pocketfocus.run.processes import cores, stop_all, workers
from pocketfocus.run.progress import say, track
from pocketfocus.run.results import CallFigures, GateRow, VerifyRow
from pocketfocus.run.rows import merge_rows

VERIFY_FILE = "verify.json"
TOGETHER = 4  # photos whose stacks are in memory at a time
SEVERITY = ("error", "fail", "not-run", "pass")
UNKNOWN = CallFigures()
POLL_S = 0.05
TRACING = threading.Lock()  # phones are verified at once, torch captures one graph at a time
T = TypeVar("T")


@dataclass(frozen=True)
class Verification:
    """How to verify a run.

    Attributes:
        photos: that a student's files are called with; None for the bundled held-out ones.
        positions: the focal positions of those calls; None for all. On a slow device fewer will do:
            rows of parity then say which, in `why`.
        fallbacks: who executes the files that the device cannot, the first that can.
        reference_device: executes each executed file too; both must agree.
    """

    photos: Sequence[Path] | None = None
    positions: Sequence[int] | None = None
    fallbacks: Sequence[Device] = ()
    reference_device: Device | None = None


@dataclass(frozen=True)
class Checks:
    """What the files of a student's run are called with; `render` is of those that render, if they
    are to be executed."""

    student: Check
    beside: Sequence[Beside] = ()
    render: Check | None = None

    def of(self, artifact: Artifact) -> tuple[Check, Sequence[Beside]]:
        """Return the check of a file, and those beside it."""
        if self.render is not None and renders(artifact.name):
            return self.render, ()
        return self.student, self.beside


DEFAULT = Verification()


def verify_run(folder: Path, device: Device, how: Verification = DEFAULT) -> list[VerifyRow]:
    """Execute every artifact of a run on `device`, and write the rows to verify.json.

    Rows of other devices stay in the file, those of fallbacks too that had nothing to execute here.
    For a student, stacks.npz keeps what the report shows
    (see `save_shown`). Raises UserError for a missing or damaged file, and for a run of none.
    """
    manifest = load_exported(folder)
    for artifact in manifest.files:
        check_artifact(folder, artifact)
    devices = list({each.name: each for each in (device, *how.fallbacks)}.values())
    rows: list[VerifyRow] = []
    if is_of_networks(manifest):
        rows, _ = rows_of(folder, manifest, devices, how)
    else:
        parent = load_parent(folder, manifest)
        host = next((each for each in devices if each.name == HOST), None)
        seen = hashlib.sha256()
        for number, photos in enumerate(groups(how.photos)):
            with TRACING:
                checks = Checks(student_check(parent, manifest, photos, how.positions))
                seen.update(to_bytes(checks.student.inputs[0]).tobytes())
                rows.append(row_on(capture_row(checks.student, manifest.student_sha256), host))
                if number == 0 and any(map(takes_sizes, devices)):
                    checks = replace(checks, beside=checks_beside(parent, manifest, photos))
                if number == 0 and manifest.render and manifest.render.files:
                    checks = replace(checks, render=render_check(parent))
            found, kept = rows_of(folder, manifest, devices, how, checks)
            rows += found
            if number == 0:
                save_shown(folder, checks.student, kept)
        rows = [telling(row, seen.hexdigest(), how.positions) for row in worst_rows(rows)]
    used = [device.name, *(able_device(devices, a.target).name for a in manifest.files)]
    merge_rows(folder / VERIFY_FILE, VerifyRow, rows, used, manifest.hashes)
    return rows


def groups(photos: Sequence[Path] | None) -> Iterator[Sequence[Path] | None]:
    """Yield photos so many at a time that their stacks fit into memory, saying what is left."""
    if photos is None or len(photos) <= TOGETHER:
        yield photos
        return
    began, total = time.monotonic(), len(photos)
    for first in range(0, total, TOGETHER):
        group = photos[first : first + TOGETHER]
        minutes = (time.monotonic() - began) / 60 * (total - first) / max(first, 1)
        left = f", about {math.ceil(minutes)} minutes left" if first else ""
        say(f"photos {first + 1} to {first + len(group)} of {total}{left}")
        yield group


def worst_rows(rows: Sequence[VerifyRow]) -> list[VerifyRow]:
    """Return of all rows of a gate of a file on a device that which ended worst, in order."""
    found: dict[tuple[str, str, str], VerifyRow] = {}

    def severity(row: VerifyRow) -> tuple[int, float]:
        return SEVERITY.index(row.status), math.inf if row.psnr_db is None else row.psnr_db

    for row in rows:
        key = row.artifact, row.device, row.gate
        found[key] = min(found.get(key, row), row, key=severity)
    return list(found.values())


def rows_of(
    folder: Path,
    manifest: Manifest,
    devices: Sequence[Device],
    how: Verification,
    checks: Checks | None = None,
) -> tuple[list[VerifyRow], dict[str, Pixels]]:
    """Execute every artifact with the checks of a student, or with its own: rows, and what the
    report shows."""
    rows: list[VerifyRow] = []
    kept: dict[str, Pixels] = {}
    here = checks is not None and all(isinstance(each, Host) for each in devices)
    one = partial(rows_of_one, folder, manifest, devices, how, checks)
    files = manifest.files if checks and checks.render else manifest.artifacts
    total = len(files)

    def in_turn() -> Generator[tuple[list[VerifyRow], Pixels | None], None, None]:
        for file in files:
            with one_process() if checks else nullcontext():
                yield one(file)

    with closing(at_once(one, files) if here else in_turn()) as found:
        pairs = zip(files, found, strict=True)
        for artifact, (own, seen) in track(pairs, "verifying", total):
            rows += own
            if seen is not None:
                kept[artifact.name] = seen
    return rows, kept


def at_once(
    work: Callable[[Artifact], T], artifacts: Sequence[Artifact]
) -> Generator[T, None, None]:
    """Yield what comes of each artifact, in order, with as many at work as there are cores, in as
    many processes of one thread each.

    Ctrl-C comes here, not into their threads: processes that nobody waits for any more are killed.
    """
    with workers(cores()) as borrowed, ThreadPoolExecutor(cores()) as pool:

        def worked(artifact: Artifact) -> T:
            with borrowed() as worker, one_process(1, worker):
                return work(artifact)

        futures = [pool.submit(worked, artifact) for artifact in artifacts]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            while not all(future.done() for future in futures):
                stop_all()
                time.sleep(POLL_S)


def rows_of_one(
    folder: Path,
    manifest: Manifest,
    devices: Sequence[Device],
    how: Verification,
    checks: Checks | None,
    artifact: Artifact,
) -> tuple[list[VerifyRow], Pixels | None]:
    """Execute an artifact on the first device that can: its rows, and what the report shows."""
    chosen, rows, seen = able_device(devices, artifact.target), list[VerifyRow](), None
    why = chosen.why_not(artifact.target)
    if why is None:
        check, beside = checks.of(artifact) if checks else (saved_check(folder, artifact), ())
        path, reference = below(folder, artifact.name), how.reference_device
        found, outputs = execute_artifact(artifact, path, chosen, check, reference)
        rows += found
        for each in beside if takes_sizes(chosen) else ():
            emulated = not isinstance(chosen, Host)  # too slow for more than the sizes
            if takes(artifact, each, manifest.size, emulated):
                rows.append(row_beside(artifact, path, chosen, each))
        if checks and check is checks.student and outputs:
            seen = shown(outputs[0], check.calls)
    else:
        gate = gate_of(artifact.precision, chosen.name, artifact.recipe)
        verdict = Verdict(None, "not-run", why)
        rows.append(row_on(gate_row(artifact, chosen.name, gate, verdict), chosen))
    return rows + [row_on(row, chosen) for row in own_rows(artifact, chosen.name)], seen


def capture_row(check: Check, sha256: str) -> GateRow:
    """Return the gate of a student's captured graph, which needs no file."""
    parents, gate = check.parents, CAPTURE_GATE
    verdict = judge(parents[CAPTURED_GRAPH], parents[gate.parent], gate.threshold_db)
    return gate_row(Artifact("student", PYTORCH, "fp32", sha256, 0), HOST, gate, verdict)


def execute_artifact(
    artifact: Artifact, path: Path, device: Device, check: Check, reference: Device | None
) -> tuple[list[VerifyRow], Arrays | None]:
    """Execute an artifact and judge it by its own gate and, of a `reference` device, against the
    same file there; the rows, and the outputs where they have the shapes of the parent's."""
    gate = gate_of(artifact.precision, device.name, artifact.recipe)
    job = check.job(path, artifact.target)
    if check.whole:
        say(f"{artifact.name}: {gate.name}")
        job = replace(job, runs=int(is_timed(device)), timeout_s=None)
    result, verdict = execute(device, job, check.parents[gate.parent], gate, check.peak)
    figures = figures_of(result) if result and check.whole else UNKNOWN
    own = gate_row(artifact, device.name, gate, named(verdict, check))
    rows = [row_on(own, device, figures)]
    outputs = result.outputs if result else None
    if reference is not None:
        same = Gate(f"{SAME_FILE} {reference.name}", reference.name, SAME_FILE_DB)
        why = "the file made no stacks" if outputs is None else reference.why_not(artifact.target)
        if outputs is None or why is not None:
            verdict = Verdict(None, "not-run", why or "")
        else:
            verdict = named(execute(reference, job, outputs, same, check.peak)[1], check)
        rows.append(row_on(gate_row(artifact, device.name, same, verdict), device))
    return rows, outputs


def named(verdict: Verdict, check: Check) -> Verdict:
    """Return a verdict that names the photo and the position of the worst call."""
    worst = "" if verdict.call is None else check.name_of(verdict.call)
    why = (verdict.why, worst and f"worst is {worst}")
    return replace(verdict, why="; ".join(filter(None, why)))


def takes(artifact: Artifact, beside: Beside, usual: Size, sizes_alone: bool = False) -> bool:
    """Return whether a file takes what a check calls it with, and it is wanted."""
    if beside.size == usual:
        return not sizes_alone
    return artifact.takes(beside.size)


def row_beside(artifact: Artifact, path: Path, device: Device, beside: Beside) -> VerifyRow:
    """Execute an artifact beside its usual check."""
    gate = gate_of(artifact.precision, device.name, artifact.recipe)
    needed = min(gate.threshold_db, beside.most_db or gate.threshold_db)
    gate = replace(gate, name=f"{beside.name}, {gate.name}", threshold_db=needed)
    check = beside.check
    job = check.job(path, artifact.target)
    _, verdict = execute(device, job, check.parents[gate.parent], gate)
    return row_on(gate_row(artifact, device.name, gate, named(verdict, check)), device)


def execute(
    device: Device, job: Job, parent: Arrays, gate: Gate, peak: float | None = PEAK
) -> tuple[Result | None, Verdict]:
    """Run a job and judge it; the result is None where its outputs have other shapes."""
    try:
        result = device.run(job)
    except UserError as error:
        return None, Verdict(None, "error", str(error))
    if result.outputs is None:
        return None, Verdict(None, "error", f"{device.name} brought no outputs back")
    verdict = judge(result.outputs, parent, gate.threshold_db, peak)
    made = result.outputs[: len(parent)]
    fits = [a.shape for a in made] == [b.shape for b in parent]
    return (result if fits else None), verdict


def row_on(row: GateRow, device: Device | None, figures: CallFigures = UNKNOWN) -> VerifyRow:
    """Return a row that says what the device is that it comes from, and what one call takes."""
    return VerifyRow(**row.given(), **origin(device, row.target).given(), **figures.given())


def figures_of(result: Result) -> CallFigures:
    """Return what one call took."""
    loading = result.load_ms + (result.first_ms if result.times_ms else 0.0)
    run_ms = result.times_ms[0] if result.times_ms else result.first_ms
    return CallFigures(
        load_ms=round(loading),
        run_ms=round(run_ms),
        peak_rss_mib=round(result.peak_rss_mib or 0.0),
    )


def telling(row: VerifyRow, photos: str, positions: Sequence[int] | None) -> VerifyRow:
    """Return a row that says of which photos, by their hash, and of which positions alone its
    figure is, if it has one and is of those: other sizes, drawn pictures and what renders have
    calls of their own."""
    usual = parity_rows([row]) and not renders(row.artifact)
    if not usual or row.psnr_db is None:
        return row
    row = row.model_copy(update={"photos_sha256": photos})
    if positions is None or len(positions) == FRAMES:
        return row
    only = f"at positions {', '.join(map(str, positions))} only"
    return row.model_copy(update={"why": f"{row.why}; {only}" if row.why else only})


def able_device(devices: Sequence[Device], target: str) -> Device:
    """Return the first device that executes files of `target`; the first of all where none does."""
    return next((d for d in devices if d.why_not(target) is None), devices[0])
