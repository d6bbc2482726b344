"""`verify --repeat`: a file called again and again makes the same finite values in the same memory.

GPU delegates of some phones do not (executorch#21938), and one call cannot show it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from pocketfocus.benchmarks.checks import fitted_photos, is_of_networks, student_inputs
from pocketfocus.benchmarks.gates import Gate, Verdict, gate_row
from pocketfocus.mobile_harness.device import Arrays, Device, Job
from pocketfocus.mobile_harness.devices import origin
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Artifact, Manifest, check_artifact, load_exported
from pocketfocus.run.progress import track
from pocketfocus.run.results import Origin, VerifyRow
from pocketfocus.run.rows import merge_rows

REPEAT_FILE = "repeat.json"
GROWTH_MIB = 32.0  # what an allocator may take beside what a file needs
NOT_FINITE = Verdict(None, "fail", "values that are not finite")
BATCH = 8  # calls whose outputs are held at once: 27 MB each at 320x448


def repeat_run(folder: Path, device: Device, times: int) -> list[VerifyRow]:
    """Call every file of a student `times` times on a device with one photo and one position, and
    write the rows to repeat.json.

    Raises UserError for a run of a reference's networks, and for a missing or damaged file.
    """
    manifest = check_students(folder)
    files = {a.name: check_artifact(folder, a) for a in manifest.artifacts}
    inputs = student_inputs(fitted_photos(None, manifest.size)[:1])
    rows = []
    for artifact in track(manifest.artifacts, f"calling {times} times", len(manifest.artifacts)):
        why = device.why_not(artifact.target)
        verdict = Verdict(None, "not-run", why or "")
        if why is None:
            job = Job(str(files[artifact.name]), artifact.target, inputs, [(0, FRAMES // 2)])
            verdict = repeated(device, job, times)
        about = origin(device, artifact.target)
        rows.append(row_of(artifact, device.name, about, times, verdict))
    merge_rows(folder / REPEAT_FILE, VerifyRow, rows, [device.name], manifest.hashes)
    return rows


def check_students(folder: Path) -> Manifest:
    """Return the manifest of a run; UserError for one of a reference's networks, or of
    no files."""
    manifest = load_exported(folder)
    if is_of_networks(manifest):
        raise UserError(f"{folder} holds a reference's networks: --repeat is for students' files")
    return manifest


def row_of(
    artifact: Artifact, device: str, about: Origin, times: int, verdict: Verdict
) -> VerifyRow:
    """Return the row of a file that was called again and again."""
    row = gate_row(artifact, device, Gate(f"the same in {times} calls", "", 0.0), verdict)
    return VerifyRow(**row.model_copy(update={"threshold_db": None}).given(), **about.given())


def repeated(device: Device, job: Job, times: int) -> Verdict:
    """Judge `times` calls of a job's one call: their hashes, whether values are finite, and by how
    much a process that makes them all is larger than one that makes a single one.

    What those two give counts too: a phone calls a file in a new process each time, but there.
    """
    starts = range(0, times, BATCH)
    jobs = [replace(job, calls=[job.calls[0]] * min(BATCH, times - start)) for start in starts]
    jobs += [replace(job, runs=count) for count in (1, times)]
    found, peaks = Counter[str](), list[float | None]()
    try:
        for each in jobs:
            result = device.run(replace(each, want_outputs=True))
            if result.outputs is None:
                return Verdict(None, "error", f"{device.name} brought no outputs back")
            found.update(hashes(result.outputs))
            if not all(np.isfinite(table).all() for table in result.outputs):
                return NOT_FINITE
            peaks.append(result.peak_rss_mib)
    except UserError as error:
        return Verdict(None, "error", str(error))
    once, often = peaks[-2:]
    return judged(found, times, None if once is None or often is None else often - once)


def hashes(outputs: Arrays) -> list[str]:
    """Return a hash of all that each call gave."""
    calls = zip(*outputs, strict=True)
    return [hashlib.sha256(b"".join(each.tobytes() for each in call)).hexdigest() for call in calls]


def judged(found: Counter[str], times: int, grown: float | None) -> Verdict:
    """Return the verdict on hashes and growth, and say both."""
    memory = "memory not told" if grown is None else f"memory {grown:+.1f} MiB"
    if len(found) > 1:
        usual = found.most_common(1)[0][1]
        return Verdict(
            None, "fail", f"{len(found)} different results, the usual one {usual} times; {memory}"
        )
    if grown is not None and grown > GROWTH_MIB:
        return Verdict(
            None, "fail", f"{memory} from 1 to {times} calls, {GROWTH_MIB:g} are let pass"
        )
    return Verdict(None, "pass", f"one result, {next(iter(found))[:12]}; {memory}")
