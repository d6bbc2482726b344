"""Parity gates: every file is executed on real photos and compared with its own parent.

Design §6: the captured graph against the eager student, an fp32 file against the captured graph,
every other precision against the fp32 student. A gate's figure is its *worst* stack over all pairs
of photo and focal position. Legend: P photos, N = 9 P pairs, T = 9 frames, H, W the exported size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.mobile_harness.device import HOST, MIL_CHECK, PYTORCH, Call, Device, Job, facts
from pocketfocus.models.student import RefocusStudent, load_student
from pocketfocus.photos.images import load_photo, to_uint8
from pocketfocus.quantize.calibration import fitted
from pocketfocus.quantize.recipes import RECIPES, Recipe, get_recipe, recipe_from
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import Row, merge_rows, sha256, write_atomic
from pocketfocus.run.manifest import (
    MANIFEST_FILE,
    Artifact,
    Manifest,
    check_artifact,
    load_manifest,
)
from pocketfocus.run.metrics import psnr
from pocketfocus.run.progress import step, track

VERIFY_FILE = "verify.json"
STACKS_FILE = "stacks.npz"
CAPTURED_DB = 90.0
ARM64_DB = 45.0  # the same file on another processor
SAME_FILE = "same file on"  # the host, say
SHOWN = (0, 4)  # the photo and focal position whose stacks are kept for the report

Stacks = NDArray[np.float32]


@dataclass(frozen=True)
class Gate:
    """What a file is held against: `parent` is `student` or `captured graph`."""

    name: str
    parent: str
    threshold_db: float


COVERAGE = "delegate coverage"
CAPTURE_GATE = Gate("captured graph", "student", CAPTURED_DB)


def gate_of(precision: str, device: str = HOST, recipe: Mapping[str, Any] | None = None) -> Gate:
    """The gate of a file: fp32 shows the runtime's error alone, the others the whole loss.

    `recipe` as the manifest has it; None for the shipped one of that name.
    """
    parent = "captured graph" if precision == "fp32" else "student"
    threshold = asked_of(precision, recipe).min_psnr_db
    return Gate(gate_name(precision, device), parent, threshold)


def gate_name(precision: str, device: str) -> str:
    """How a file's gate is called in tables."""
    return f"{precision} file, {'MIL check' if device == MIL_CHECK else 'executed'}"


def asked_of(precision: str, recipe: Mapping[str, Any] | None) -> Recipe:
    """The shipped recipe of that name, else the one of the artifact's own fields."""
    if precision in RECIPES or not recipe:
        return get_recipe(precision)
    return recipe_from(recipe, f"the manifest's recipe {precision}")


@dataclass(frozen=True)
class Verdict:
    """How a gate ended: `psnr_db` of the worst stack, None when there is none to score."""

    psnr_db: float | None
    status: str
    why: str


def verify_run(
    folder: Path,
    device: Device,
    photos: Sequence[Path] | None = None,
    stand_ins: Sequence[Device] = (),
    twin: Device | None = None,
    positions: Sequence[int] | None = None,
) -> list[Row]:
    """Execute every artifact of a run on `device` and write its verify.json and stacks.npz.

    A file that `device` cannot execute goes to the first of `stand_ins` that can. Where a `twin`
    is given, it executes each executed file too, and both must agree.

    `photos` default to the bundled held-out ones, which calibration never sees. On a slow device
    fewer `positions` than all will do: rows of parity then say which, in `why`, and stacks.npz
    stays as it was unless the one that is shown is among them. Rows are
    `{artifact, target, precision, device, gate, psnr_db, threshold_db, status, why, model, chip,
    os, runtime}`; `psnr_db` is at most 200 (equal to the bit). Rows of other devices stay in the
    file. stacks.npz holds uint8 `photo` [H,W,3] and a stack [9,H,W,3]
    for `student` and every executed artifact. Raises UserError for a missing or damaged file.
    """
    manifest = load_manifest(folder)
    files = {a.name: check_artifact(folder, a) for a in manifest.artifacts if is_written(a)}
    student = load_parent(folder, manifest)
    inputs = fitted_photos(photos, manifest.size)
    places = range(FRAMES) if positions is None else positions
    calls = [(index, position) for index in range(len(inputs)) for position in places]
    with step(f"the student and its captured graph on {len(inputs)} photos"):
        parents = parent_stacks(student, inputs, calls)

    kept = {"photo": to_bytes(inputs[SHOWN[0]]), "student": shown(parents["student"], calls)}
    verdict = judge(parents["captured graph"], parents["student"], CAPTURE_GATE.threshold_db)
    capture = ("student", PYTORCH, "fp32", HOST, CAPTURE_GATE.name, CAPTURED_DB)
    rows = [gate_row(*capture, verdict)]
    for artifact in track(manifest.artifacts, "verifying", len(manifest.artifacts)):
        by = first_able((device, *stand_ins), artifact.target)
        gate = gate_of(artifact.precision, by.name, artifact.recipe)
        why = why_not(artifact, by)
        if why is None:
            path = str(files[artifact.name])
            job = Job(path, artifact.target, inputs, calls, want_outputs=True)
            stacks, verdict = execute(by, job, parents[gate.parent], gate)
            if stacks is not None:
                kept[artifact.name] = shown(stacks, calls)
        else:
            verdict = Verdict(None, "not-run", why)
        about = (artifact.name, artifact.target, artifact.precision, by.name)
        rows.append(gate_row(*about, gate.name, gate.threshold_db, verdict))
        if twin is not None and why is None:
            name = f"{SAME_FILE} {twin.name}"
            rows.append(gate_row(*about, name, ARM64_DB, agreement(twin, job, stacks)))
        rows += coverage_rows(artifact, by.name)
    if len(places) < FRAMES:
        rows = [partial_row(row, places) for row in rows]
    nothing_new = len(kept) <= 2 and (folder / STACKS_FILE).exists()  # an absent device's
    if SHOWN in calls and not nothing_new:
        save_stacks(folder / STACKS_FILE, kept)
    ran = {each.name: each for each in (device, *stand_ins)}
    rows = [row | facts(ran.get(row["device"]), row["target"]) for row in rows]
    merge_rows(folder / VERIFY_FILE, rows, list(ran), folder / MANIFEST_FILE)
    return rows


def partial_row(row: Row, positions: Sequence[int]) -> Row:
    """A row that says which positions its figure is of, if it has one."""
    if row["psnr_db"] is None:
        return row
    only = f"at positions {', '.join(map(str, positions))} only"
    return {**row, "why": f"{row['why']}; {only}" if row["why"] else only}


def agreement(twin: Device, job: Job, stacks: Stacks | None) -> Verdict:
    """Hold a file's stacks [N,9,3,S,S] against those that it makes on another device."""
    why = "the file made no stacks" if stacks is None else twin.why_not(job.target)
    if stacks is None or why is not None:
        return Verdict(None, "not-run", why or "")
    return execute(twin, job, stacks, Gate(SAME_FILE, twin.name, ARM64_DB))[1]


def coverage_rows(artifact: Artifact, device: str) -> list[Row]:
    """The gate of what runs inside the backend, for files whose manifest says how much does.

    Its floor is the recipe's `min_delegated`; `why` says what was found, and what fell out.
    """
    found = artifact.delegation
    if found is None or not is_written(artifact):
        return []
    floor = asked_of(artifact.precision, artifact.recipe).min_delegated
    why = (
        f"{100 * found.share:.1f} % of {found.total_ops} operators are delegated in {found.calls} "
        f"call{'s' * (found.calls != 1)}, {100 * floor:g} % are needed"
    )
    if found.fallen_out:
        counts = Counter(found.fallen_out).most_common()
        why += "; fallen out: " + ", ".join(f"{count} {name}" for name, count in counts)
    verdict = Verdict(None, "pass" if found.share >= floor else "fail", why)
    about = (artifact.name, artifact.target, artifact.precision, device)
    return [gate_row(*about, COVERAGE, None, verdict)]


def parity_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that compare outputs: all but those of delegate coverage."""
    return [row for row in rows if row["gate"] != COVERAGE]


def failed(rows: Sequence[Row]) -> list[Row]:
    """The rows whose gate failed; any makes the exit code 1."""
    return [row for row in rows if row["status"] == "fail"]


def execute(device: Device, job: Job, parent: Stacks, gate: Gate) -> tuple[Stacks | None, Verdict]:
    """Run a file and judge it; stacks [N,9,3,H,W] only when they are of the right shape."""
    try:
        stacks = device.run(job).outputs
    except UserError as error:
        return None, Verdict(None, "fail", str(error))
    if stacks is None:
        return None, Verdict(None, "fail", f"{device.name} brought no outputs back")
    verdict = judge(stacks, parent, gate.threshold_db)
    return (stacks if stacks.shape == parent.shape else None), verdict


def judge(stacks: Stacks, parent: Stacks, threshold_db: float) -> Verdict:
    """Hold stacks [N,9,3,H,W] against their parent's; the worst of the N decides."""
    if stacks.shape != parent.shape:
        return Verdict(
            None, "fail", f"makes outputs {list(stacks.shape)}, its parent {list(parent.shape)}"
        )
    if not np.isfinite(stacks).all():
        return Verdict(None, "fail", "makes values that are not finite (NaN or infinity)")
    worst = min(stack_psnr(a, b) for a, b in zip(stacks, parent, strict=True))
    if worst >= threshold_db:
        return Verdict(worst, "pass", "")
    return Verdict(worst, "fail", f"worst stack has {worst:.1f} dB, {threshold_db:g} dB are needed")


def stack_psnr(a: Stacks, b: Stacks) -> float:
    """PSNR (dB) over one whole stack, peak 2.0, rounded down to 0.01; 200 at most and if equal."""
    return math.floor(100 * psnr(torch.from_numpy(a), torch.from_numpy(b))) / 100


def load_parent(folder: Path, manifest: Manifest) -> RefocusStudent:
    """The student that the files were made from; UserError when student/ is another one."""
    found = sha256(folder / "student")
    if found != manifest.student_sha256:
        raise UserError(
            f"{folder / 'student'} has SHA-256 {found[:12]}, but the files were made from "
            f"{manifest.student_sha256[:12]}: run export again"
        )
    return load_student(folder / "student")


def parent_stacks(
    student: RefocusStudent, inputs: Stacks, calls: Sequence[Call]
) -> dict[str, Stacks]:
    """Stacks [N,9,3,H,W] of the eager student and of its `torch.export` program."""
    tensors = [(torch.from_numpy(inputs[i : i + 1]), one_hot(p)) for i, p in calls]
    captured = torch.export.export(student, tensors[0]).module()
    with torch.inference_mode():
        return {
            "student": np.stack([student(*pair).numpy() for pair in tensors]),
            "captured graph": np.stack([captured(*pair).numpy() for pair in tensors]),
        }


def fitted_photos(paths: Sequence[Path] | None, size: tuple[int, int]) -> Stacks:
    """Photos [P,3,H,W] in [-1,1], cut to the files' proportions; None for the held-out ones."""
    if paths is None:
        images = [Image.fromarray(photo) for photo in held_out_photos()]
    elif not paths:
        raise UserError("no photo to verify on: name some, or leave --photos out")
    else:
        images = [load_photo(path) for path in paths]
    return np.concatenate([fitted(image, size).numpy() for image in images])


def shown(stacks: Stacks, calls: Sequence[Call]) -> NDArray[np.uint8]:
    """The stack for the report, [9,H,W,3] uint8, of [N,9,3,H,W]: `SHOWN`, else the first."""
    return to_bytes(stacks[calls.index(SHOWN) if SHOWN in calls else 0])


def to_bytes(images: Stacks) -> NDArray[np.uint8]:
    """[..., 3, H, W] in [-1,1] to [..., H, W, 3] uint8."""
    return to_uint8(torch.from_numpy(images))


def save_stacks(path: Path, stacks: dict[str, NDArray[np.uint8]]) -> None:
    """Write named uint8 arrays as one .npz, atomically."""
    with write_atomic(path) as scratch, open(scratch, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **stacks)


def why_not(artifact: Artifact, device: Device) -> str | None:
    """Why an artifact cannot be executed: it was refused, or the device does not run its target."""
    if not is_written(artifact):
        return f"not written: {artifact.why}"
    return device.why_not(artifact.target)


def first_able(devices: Sequence[Device], target: str) -> Device:
    """The first device that executes files of `target`; the first of all where none does."""
    return next((d for d in devices if d.why_not(target) is None), devices[0])


def is_written(artifact: Artifact) -> bool:
    """Whether the artifact has a file; a refused one has only a reason."""
    return artifact.status == "written"


def gate_row(
    artifact: str,
    target: str,
    precision: str,
    device: str,
    gate: str,
    threshold_db: float | None,
    verdict: Verdict,
) -> Row:
    """A row of verify.json; `threshold_db` is None where the gate has no figure in dB."""
    return {
        "artifact": artifact,
        "target": target,
        "precision": precision,
        "device": device,
        "gate": gate,
        "psnr_db": verdict.psnr_db,
        "threshold_db": threshold_db,
        "status": verdict.status,
        "why": verdict.why,
    }
