"""Execute every file of a run, and hold what it makes against its own parent: verify.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pocketfocus.benchmarks.checks import (
    SavedChecks,
    StudentChecks,
    is_of_networks,
    student_checks,
)
from pocketfocus.benchmarks.gates import (
    SAME_FILE,
    SAME_FILE_DB,
    Gate,
    GateRow,
    Verdict,
    coverage_rows,
    gate_of,
    gate_row,
    is_written,
    judge,
    subject_of,
)
from pocketfocus.data.optics import FRAMES
from pocketfocus.mobile_harness.device import Arrays, Device, Job, Result
from pocketfocus.mobile_harness.devices import is_timed, origin
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import Row, merge_rows
from pocketfocus.run.manifest import (
    MANIFEST_FILE,
    Artifact,
    Manifest,
    check_artifact,
    load_manifest,
)
from pocketfocus.run.metrics import PEAK
from pocketfocus.run.progress import console, track

VERIFY_FILE = "verify.json"


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


DEFAULT = Verification()


def verify_run(folder: Path, device: Device, how: Verification = DEFAULT) -> list[Row]:
    """Execute every artifact of a run on `device`; the rows, which verify.json keeps.

    Rows are `{artifact, target, precision, device, gate, psnr_db, threshold_db, status, why, model,
    chip, os, runtime}`; `psnr_db` is at most 200 (equal to the bit). Those of a reference's own
    networks also have `load_ms`, `run_ms` and `peak_rss_mib` where the file ran. Rows of other
    devices stay in the file. For a student, stacks.npz keeps what the report shows (see
    `StudentChecks.save`). Raises UserError for a missing or damaged file.
    """
    manifest = load_manifest(folder)
    files = {a.name: check_artifact(folder, a) for a in manifest.artifacts if is_written(a)}
    checks = checks_of(folder, manifest, how)
    devices = {each.name: each for each in (device, *how.fallbacks)}
    rows: list[Row] = [asdict(row) for row in checks.rows()]
    for artifact in track(manifest.artifacts, "verifying", len(manifest.artifacts)):
        chosen = able_device([*devices.values()], artifact.target)
        found = execute_artifact(artifact, files.get(artifact.name), chosen, checks)
        if found.outputs is not None:
            checks.keep(artifact.name, found.outputs)
        rows.append(asdict(found.row) | found.figures)
        if how.reference_device is not None and found.job is not None:
            rows.append(asdict(agreement_row(artifact, found, how.reference_device)))
        rows += [asdict(row) for row in coverage_rows(artifact, chosen.name)]
    checks.save(folder)
    if how.positions is not None and len(how.positions) < FRAMES:
        rows = [partial_row(row, how.positions) for row in rows]
    rows = [row | asdict(origin(devices.get(row["device"]), row["target"])) for row in rows]
    merge_rows(folder / VERIFY_FILE, rows, list(devices), folder / MANIFEST_FILE)
    return rows


def checks_of(folder: Path, manifest: Manifest, how: Verification) -> StudentChecks | SavedChecks:
    """What the files of a run are held against."""
    if is_of_networks(manifest):
        return SavedChecks(folder)
    return student_checks(folder, manifest, how.photos, how.positions)


@dataclass(frozen=True)
class Found:
    """What became of one artifact.

    Attributes:
        row: of its gate.
        job: that was run; None where the artifact could not be executed.
        peak: as of the file's `Check`.
        outputs: of that job, where they have the right shape.
        figures: what loading and calling the file took, for a network of a reference.
    """

    row: GateRow
    job: Job | None = None
    peak: float | None = None
    outputs: Arrays | None = None
    figures: dict[str, float] = field(default_factory=dict)


def execute_artifact(
    artifact: Artifact, path: Path | None, device: Device, checks: StudentChecks | SavedChecks
) -> Found:
    """Execute an artifact and judge it, unless it was refused or the device cannot execute it."""
    subject = subject_of(artifact, device.name)
    gate = gate_of(artifact.precision, device.name, artifact.recipe)
    why = f"not written: {artifact.why}" if path is None else device.why_not(artifact.target)
    if path is None or why is not None:
        verdict = Verdict(None, "not-run", why or "")
        return Found(gate_row(subject, gate.name, gate.threshold_db, verdict))
    check = checks.of(artifact)
    job = Job(str(path), artifact.target, check.inputs, check.calls, want_outputs=True)
    if check.whole:
        console.print(f"{artifact.name}: {gate.name}")
        job = replace(job, runs=int(is_timed(device)), timeout_s=None)
    result, verdict = execute(device, job, check.parents[gate.parent], gate, check.peak)
    return Found(
        row=gate_row(subject, gate.name, gate.threshold_db, verdict),
        job=job,
        peak=check.peak,
        outputs=result.outputs if result else None,
        figures=figures_of(result) if result and check.whole else {},
    )


def execute(
    device: Device, job: Job, parent: Arrays, gate: Gate, peak: float | None = PEAK
) -> tuple[Result | None, Verdict]:
    """Run a job and judge it; a result only where its outputs have the shapes of the parent's."""
    try:
        result = device.run(job)
    except UserError as error:
        return None, Verdict(None, "fail", str(error))
    if result.outputs is None:
        return None, Verdict(None, "fail", f"{device.name} brought no outputs back")
    verdict = judge(result.outputs, parent, gate.threshold_db, peak)
    fits = [a.shape for a in result.outputs] == [b.shape for b in parent]
    return (result if fits else None), verdict


def figures_of(result: Result) -> dict[str, float]:
    """What one call takes; what comes before it is loading: on first use runtimes pack weights."""
    loading = result.load_ms + (result.first_ms if result.times_ms else 0.0)
    run_ms = result.times_ms[0] if result.times_ms else result.first_ms
    return {
        "load_ms": round(loading),
        "run_ms": round(run_ms),
        "peak_rss_mib": round(result.peak_rss_mib or 0.0),
    }


def agreement_row(artifact: Artifact, found: Found, reference: Device) -> GateRow:
    """The gate of an executed file against itself on another device."""
    gate = Gate(f"{SAME_FILE} {reference.name}", reference.name, SAME_FILE_DB)
    assert found.job is not None
    if found.outputs is None:
        verdict = Verdict(None, "not-run", "the file made no stacks")
    elif (why := reference.why_not(artifact.target)) is not None:
        verdict = Verdict(None, "not-run", why)
    else:
        verdict = execute(reference, found.job, found.outputs, gate, found.peak)[1]
    return gate_row(subject_of(artifact, found.row.device), gate.name, gate.threshold_db, verdict)


def partial_row(row: Row, positions: Sequence[int]) -> Row:
    """A row that says which positions its figure is of, if it has one."""
    if row["psnr_db"] is None:
        return row
    only = f"at positions {', '.join(map(str, positions))} only"
    return {**row, "why": f"{row['why']}; {only}" if row["why"] else only}


def able_device(devices: Sequence[Device], target: str) -> Device:
    """The first device that executes files of `target`; the first of all where none does."""
    return next((d for d in devices if d.why_not(target) is None), devices[0])
