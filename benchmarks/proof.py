"""What stands against publishing a run: changed files, failed gates, what nobody measured."""

from __future__ import annotations

from collections.abc import Iterator

from pocketfocus.benchmarks.gates import failed
from pocketfocus.benchmarks.measured import MeasuredRun, positions_of
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256
from pocketfocus.run.manifest import check_artifact
from pocketfocus.run.paths import below


def doubts(run: MeasuredRun) -> list[str]:
    """Return a sentence for everything that makes a run unproven; none for one that is proven.

    UserError where a file is not there at all.
    """
    return [*changed(run), *unproven(run), *unmeasured(run)]


def changed(run: MeasuredRun) -> Iterator[str]:
    """Say which files are not those that the manifest lists."""
    for artifact in run.manifest.files:
        path = below(run.folder, artifact.name)
        if not path.exists():
            raise UserError(f"{path} is missing, the manifest lists it: run export again")
        try:
            check_artifact(run.folder, artifact)
        except UserError:
            yield f"{artifact.name} is not the file that the manifest lists: its hash differs"
    if sha256(run.folder / "student") != run.manifest.student_sha256:
        yield "student is not the one that the files were made of: its hash differs"


def unproven(run: MeasuredRun) -> Iterator[str]:
    """Say which gates failed, and which files passed none."""
    if not run.gates:
        yield "no parity gate was run (pocketfocus verify)"
        return
    for row in failed(run.gates):
        yield f"{row.artifact} failed its gate “{row.gate}” on {row.device}: {row.why}"
    for row in run.gates:
        if row.status == "error":
            yield f"{row.artifact} could not be judged by “{row.gate}” on {row.device}: {row.why}"
    passed = [row for row in run.parities if row.status == "pass"]
    whole = {row.artifact for row in passed if not positions_of(row)}
    parts = {row.artifact: positions_of(row) for row in passed}
    known = whole | {row.artifact for row in run.gates if row.status in ("fail", "error")}
    for artifact in run.manifest.files:
        name = artifact.name
        if name in parts and name not in whole:
            yield f"{name} was verified at positions {parts[name]} alone"
        elif name not in known:
            yield f"{name} was executed on no device: its parity is not known"


def unmeasured(run: MeasuredRun) -> Iterator[str]:
    """Say for which files nobody tried to measure latency; one that no device here can run, such as
    a Core ML file off macOS, was tried, and the card says why it has none."""
    if not run.timings:
        yield "no latency was measured (pocketfocus bench)"
        return
    tried = {row.artifact for row in run.bench if row.status != "failed"}
    for artifact in run.manifest.files:
        if artifact.name not in tried:
            yield f"{artifact.name} was not measured (pocketfocus bench)"
