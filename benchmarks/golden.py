"""A golden bundle: inputs, expected outputs, tolerances and hashes, for another machine to replay.

golden.json describes everything; tensors are raw little-endian files, float32 inputs and float16
outputs, that Swift or Kotlin read without a library. The files of the run lie beside them, so that
the bundle alone can be carried to a phone or a Mac.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfocus.benchmarks.verify import (
    ARM64_DB,
    Gate,
    Stacks,
    Verdict,
    execute,
    first_able,
    fitted_photos,
    gate_name,
    gate_of,
    gate_row,
    is_written,
    judge,
    load_parent,
    parent_stacks,
)
from pocketfocus.data.optics import one_hot
from pocketfocus.mobile_harness.device import Call, Device, Job
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import Row, read_json, sha256, write_atomic, write_json, write_rows
from pocketfocus.run.manifest import Artifact, check_artifact, load_manifest
from pocketfocus.run.progress import track

GOLDEN_FILE = "golden.json"
REPLAY_FILE = "replay.json"
POSITIONS = (0, 4, 8)  # of the first photo: every stack is 3.5 MB at 256 pixels
SAME_FILE = "same file, replayed"
HALF_DB = 65.0  # the most that stacks kept in float16 can prove (rounding alone is about 77 dB)
KINDS: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


def write_golden(
    folder: Path, out: Path, devices: Sequence[Device], photos: Sequence[Path] | None = None
) -> Path:
    """Execute every file of a run and write the bundle `out`; the path of its golden.json.

    The photo is the first of `photos`, or of the bundled held-out ones. A file that none of
    `devices` executes comes with the student's stacks alone. UserError when a file is damaged,
    fails, or misses its own gate: what is wrong must not become what is expected.
    """
    manifest = load_manifest(folder)
    student = load_parent(folder, manifest)
    inputs = fitted_photos(photos, manifest.size)[:1]
    calls = [(0, position) for position in POSITIONS]
    parents = parent_stacks(student, inputs, calls)
    files = [(a, check_artifact(folder, a)) for a in manifest.artifacts if is_written(a)]
    with write_atomic(out) as scratch:
        scratch.mkdir()
        content: dict[str, Any] = {
            "size": manifest.size,
            "inputs": [
                {
                    "photo": save(scratch, "photo.f32", inputs, "float32"),
                    "position": save(scratch, f"position-{p}.f32", one_hot(p).numpy(), "float32"),
                }
                for _, p in calls
            ],
            "student": save(scratch, "student.f16", parents["student"], "float16"),
            "artifacts": [],
        }
        for artifact, path in track(files, "writing golden outputs", len(files)):
            entry = described(artifact)
            copy = scratch / artifact.name
            copy.parent.mkdir(exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
            device = first_able(devices, artifact.target)
            if device.why_not(artifact.target) is None:
                gate = gate_of(artifact.precision, device.name, artifact.recipe)
                job = Job(str(path), artifact.target, inputs, calls, want_outputs=True)
                stacks, verdict = execute(device, job, parents[gate.parent], gate)
                if stacks is None or verdict.status != "pass":
                    raise UserError(
                        f"{artifact.name} misses its own gate ({verdict.why}): no golden bundle is "
                        "made of it"
                    )
                name = f"{artifact.name.replace('/', '-')}.f16"
                entry |= {
                    "made_by": device.name,
                    "expected": save(scratch, name, stacks, "float16"),
                }
            content["artifacts"].append(entry)
        write_json(scratch / GOLDEN_FILE, content)
    return out / GOLDEN_FILE


def described(artifact: Artifact) -> dict[str, Any]:
    """A file, its hash and both tolerances."""
    return {
        "name": artifact.name,
        "target": artifact.target,
        "precision": artifact.precision,
        "sha256": artifact.sha256,
        "student_db": min(
            gate_of(artifact.precision, recipe=artifact.recipe).threshold_db, HALF_DB
        ),
        "same_file_db": ARM64_DB,
    }


def replay(bundle: Path, devices: Sequence[Device]) -> list[Row]:
    """Execute a bundle's files here and hold them against what it expects; writes replay.json.

    Two rows a file: against the student's stacks, and against the same file's own on the machine
    that wrote the bundle. UserError for a missing or damaged bundle.
    """
    golden = read_json(bundle / GOLDEN_FILE)
    try:
        entries = golden["artifacts"]
        inputs = load(bundle, golden["inputs"][0]["photo"])
        calls = [(0, int(load(bundle, pair["position"]).argmax())) for pair in golden["inputs"]]
        student = load(bundle, golden["student"])
        rows = [
            row
            for entry in entries
            for row in replayed(bundle, entry, inputs, calls, student, devices)
        ]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{bundle / GOLDEN_FILE} lacks {error}: write the bundle again") from error
    write_rows(bundle / REPLAY_FILE, rows)
    return rows


def replayed(
    bundle: Path,
    entry: dict[str, Any],
    inputs: Stacks,
    calls: Sequence[Call],
    student: Stacks,
    devices: Sequence[Device],
) -> list[Row]:
    """The rows of one file."""
    path, name, target = bundle / entry["name"], entry["name"], entry["target"]
    check_hash(path, entry["sha256"])
    device = first_able(devices, target)
    gate = Gate(gate_name(entry["precision"], device.name), "student", entry["student_db"])
    why = device.why_not(target)
    if why is not None:
        verdict, stacks = Verdict(None, "not-run", why), None
    else:
        job = Job(str(path), target, inputs, calls, want_outputs=True)
        stacks, verdict = execute(device, job, student, gate)
    about = (name, target, entry["precision"], device.name)
    rows = [gate_row(*about, gate.name, gate.threshold_db, verdict)]
    if "expected" in entry:
        same = Gate(SAME_FILE, f"on {entry['made_by']}", entry["same_file_db"])
        if stacks is not None:
            verdict = judge(stacks, load(bundle, entry["expected"]), same.threshold_db)
        rows.append(gate_row(*about, same.name, same.threshold_db, verdict))
    return rows


def check_hash(path: Path, expected: str) -> None:
    """UserError unless what a bundle lists is there, with its hash."""
    if not path.exists() or sha256(path) != expected:
        raise UserError(f"{path} is not the file that {GOLDEN_FILE} lists: write the bundle again")


def save(folder: Path, name: str, values: NDArray[Any], kind: str) -> dict[str, Any]:
    """Write a tensor's raw values; its file, shape, dtype and hash."""
    path = folder / name
    path.write_bytes(np.ascontiguousarray(values.astype(KINDS[kind])).tobytes())
    return {"file": name, "shape": list(values.shape), "dtype": kind, "sha256": sha256(path)}


def load(folder: Path, entry: dict[str, Any]) -> Stacks:
    """A tensor that `save` wrote, as float32; UserError when its hash is another."""
    path = folder / entry["file"]
    check_hash(path, entry["sha256"])
    values = np.frombuffer(path.read_bytes(), KINDS[entry["dtype"]])
    return values.reshape(entry["shape"]).astype(np.float32)
