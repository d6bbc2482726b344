"""A golden bundle: inputs, expected outputs, tolerances and hashes, for another machine to replay.

golden.json describes everything; tensors are raw little-endian files, float32 inputs and float16
outputs, that Swift or Kotlin read without a library. The files of the run lie beside them, so that
the bundle alone can be carried to a phone or a Mac. Its canary is what an app takes along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import Field

from pocketfocus.benchmarks.canary import (
    Canary,
    Sized,
    canary_verdict,
    check_canary,
    make_canary,
    sampled,
    tries_of,
)
from pocketfocus.benchmarks.checks import (
    Check,
    fitted_photos,
    load_parent,
    parent_stacks,
    student_inputs,
)
from pocketfocus.benchmarks.gates import (
    OTHER_SIZE,
    SAME_FILE_DB,
    STUDENT,
    Gate,
    Verdict,
    gate_name,
    gate_of,
    gate_row,
    judge,
)
from pocketfocus.benchmarks.golden_sizes import (
    FileAtSize,
    OtherSize,
    Written,
    files_at,
    own_outputs,
    shapes_at,
    write_sizes,
)
from pocketfocus.benchmarks.saved import (
    AGAIN,
    GOLDEN_FILE,
    Decibels,
    Saved,
    check_hash,
    load,
    named_in,
    save,
)
from pocketfocus.benchmarks.verify import able_device, execute
from pocketfocus.mobile_harness.device import Arrays, Device
from pocketfocus.mobile_harness.devices import on_each, takes_sizes
from pocketfocus.mobile_harness.host import one_process
from pocketfocus.run.constants import FRAMES, IMAGES, Size, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import check_replaceable, copy, read_json, write_atomic, write_json
from pocketfocus.run.manifest import HASHES_VERSION, Artifact, check_artifact, load_exported
from pocketfocus.run.paths import below
from pocketfocus.run.progress import track
from pocketfocus.run.results import GateRow
from pocketfocus.run.rows import Row, part_of, write_rows

REPLAY_FILE = "replay.json"
POSITIONS = (0, 4, 8)  # of the first photo: every stack is 7.7 MB at 320x448
SAME_FILE = "same file, replayed"
CHANNELS = 3
HALF_DB = 65.0  # the most that stacks kept in float16 can prove (rounding alone is about 77 dB)
S = TypeVar("S", OtherSize, Sized)


class Input(Row):
    """What every file is called with, once for each."""

    photo: Saved
    position: Saved


class File(Row):
    """A file of a bundle and both its tolerances.

    `expected` are its own stacks on the device `made_by`, where one executed it; `others` tells
    what to call for photos of its other sizes.
    """

    name: str
    target: str
    precision: str
    sha256: str
    student_db: Decibels
    same_file_db: Decibels
    made_by: str | None = None
    expected: Saved | None = None
    others: tuple[FileAtSize, ...] = ()


class Golden(Row):
    """golden.json; `student` are the stacks of the student itself, the canary is of the first of
    its inputs, and so are the `others`, at the other sizes of photos, and what else pictures are
    made of, `sharp` [1,1,3,H,W] and `detail` [1,1,10,H,W], which older bundles lack."""

    size: Size
    inputs: tuple[Input, ...] = Field(min_length=1)
    student: Saved
    artifacts: tuple[File, ...]
    canary: Canary
    others: tuple[OtherSize, ...] = ()
    sharp: Saved | None = None
    detail: Saved | None = None


def write_golden(
    folder: Path, out: Path, devices: Sequence[Device], photos: Sequence[Path] | None = None
) -> Path:
    """Execute every file of a run, write the bundle `out`, and return its golden.json.

    The photo is the first of `photos`, or of the bundled held-out ones. A file that none of
    `devices` executes comes with the student's stacks alone. UserError when a file is damaged,
    fails, or misses its own gate: what is wrong must not become what is expected; and where `out`
    holds a file that is of no bundle.
    """
    own = {GOLDEN_FILE, REPLAY_FILE, *named_in(out)}
    check_replaceable(out, (GOLDEN_FILE,), "--golden", own)
    manifest = load_exported(folder)
    student = load_parent(folder, manifest)
    inputs = student_inputs(fitted_photos(photos, manifest.size)[:1])
    calls = [(0, position) for position in POSITIONS]
    check = Check(inputs, calls, parent_stacks(student, inputs, calls))
    files = [(a, check_artifact(folder, a)) for a in manifest.artifacts]
    with write_atomic(out) as scratch:
        scratch.mkdir()
        photo = save(scratch, "photo.f32", inputs[0][0], "float32")
        positions = [save(scratch, f"position-{p}.f32", inputs[1][p], "float32") for _, p in calls]
        stacks, sharp, detail = (
            save(scratch, f"{name}.f16", table[:count], "float16")
            for name, table, count in zip(
                ("student", "sharp", "detail"),
                check.parents[STUDENT],
                (len(calls), 1, 1),
                strict=True,
            )
        )
        written = write_sizes(scratch, student, manifest, photos, POSITIONS[0])
        tries = tries_of(
            [(a, described(a).student_db) for a in manifest.artifacts],
            [each.other.size for each in written],
        )
        first, sized = check.parents[STUDENT][0][0], [each.canary(scratch) for each in written]
        golden = Golden(
            size=manifest.size,
            inputs=tuple(Input(photo=photo, position=position) for position in positions),
            student=stacks,
            artifacts=tuple(
                add_file(scratch, artifact, path, check, written, devices)
                for artifact, path in track(files, "writing golden outputs", len(files))
            ),
            canary=make_canary(scratch, inputs[0][0], calls[0][1], first, tries, sized),
            others=tuple(each.other for each in written),
            sharp=sharp,
            detail=detail,
        )
        write_json(scratch / GOLDEN_FILE, golden.as_json(), HASHES_VERSION)
    return out / GOLDEN_FILE


def add_file(
    bundle: Path,
    artifact: Artifact,
    path: Path,
    check: Check,
    written: Sequence[Written],
    devices: Sequence[Device],
) -> File:
    """Copy a file into a bundle, execute it, and return its entry, with its stacks if it ran."""
    copy(path, below(bundle, artifact.name))
    entry, device = described(artifact), able_device(devices, artifact.target)
    with one_process():
        others = tuple(files_at(bundle, artifact, path, written, device))
        entry = entry.model_copy(update={"others": others}) if others else entry
        if device.why_not(artifact.target) is not None:
            return entry
        stacks, *_ = own_outputs(device, artifact, path, check)
    own = save(bundle, f"{artifact.name.replace('/', '-')}.f16", stacks, "float16")
    return entry.model_copy(update={"made_by": device.name, "expected": own})


def described(artifact: Artifact) -> File:
    """Describe a file with its hash and both tolerances."""
    gate = gate_of(artifact.precision, recipe=artifact.recipe)
    return File(
        name=artifact.name,
        target=artifact.target,
        precision=artifact.precision,
        sha256=artifact.sha256,
        student_db=min(gate.threshold_db, HALF_DB),
        same_file_db=SAME_FILE_DB,
    )


def replay(
    bundle: Path, devices: Sequence[Device], fallbacks: Sequence[Device] = ()
) -> list[GateRow]:
    """Execute a bundle's files on each of `devices`, or on `fallbacks` what one cannot, and hold
    them against what it expects; writes replay.json.

    Three rows a file and size: against what the student makes, against the same file's own on the
    machine that wrote the bundle, and the canary's. UserError for a missing or damaged bundle.
    """
    golden = read_golden(bundle / GOLDEN_FILE)
    inputs = student_inputs(load(bundle, golden.inputs[0].photo))
    calls = [(0, int(load(bundle, pair.position).argmax())) for pair in golden.inputs]
    check = Check(inputs, calls, {STUDENT: (load(bundle, golden.student),)})
    check_canary(bundle, golden.canary, inputs[0][0], calls[0][1])

    def on_one(device: Device) -> list[GateRow]:
        able = (device, *fallbacks)
        files = golden.artifacts
        return [row for file in files for row in replayed(bundle, file, golden, check, able)]

    rows = on_each(tuple(devices), on_one)
    write_rows(bundle / REPLAY_FILE, rows)
    return rows


def read_golden(path: Path) -> Golden:
    """Return golden.json; UserError for a field that is not as `write_golden` writes it."""
    content = read_json(path, HASHES_VERSION, AGAIN)
    del content["schema_version"]
    golden = part_of(str(path), Golden, content, AGAIN)
    height, width = golden.size
    shapes: list[tuple[Saved, tuple[int, ...]]] = [
        (pair.photo, (1, CHANNELS, height, width)) for pair in golden.inputs
    ]
    shapes += [(pair.position, (1, FRAMES)) for pair in golden.inputs]
    stacks = (len(golden.inputs), FRAMES, CHANNELS, height, width)
    own = (file.expected for file in golden.artifacts if file.expected is not None)
    shapes += [(saved, stacks) for saved in (golden.student, *own)]
    for images, count in ((golden.sharp, CHANNELS), (golden.detail, IMAGES)):
        if images is not None:
            shapes.append((images, (1, 1, count, height, width)))
    canary = golden.canary
    shapes += [
        (canary.photo, (1, CHANNELS, height, width)),
        (canary.expected, sampled(np.empty(stacks[1:], np.uint8), canary.step).shape),
    ]
    others = [each for file in golden.artifacts for each in file.others]
    shapes += shapes_at(golden.others, others, canary)
    for saved, shape in shapes:
        if saved.shape != shape:
            raise UserError(
                f"{path}: {saved.file} is {list(saved.shape)}, its inputs make {list(shape)}: "
                "write the bundle again"
            )
    return golden


def replayed(
    bundle: Path, entry: File, golden: Golden, check: Check, devices: Sequence[Device]
) -> list[GateRow]:
    """Execute one file and return its rows."""
    check_hash(below(bundle, entry.name), entry.sha256)
    canary, device = golden.canary, able_device(devices, entry.target)
    why = device.why_not(entry.target)
    alone = why or (None if takes_sizes(device) else f"{device.name} calls no other sizes")
    with one_process():
        images = tuple(load(bundle, each) for each in (golden.sharp, golden.detail) if each)
        usual = Expectation(check, entry.expected, images=images)
        rows = held(bundle, entry, canary, usual, device, why)
        for each in entry.others:
            other, sized = at_size(golden.others, each.size), at_size(canary.sizes, each.size)
            inputs = student_inputs(load(bundle, other.photo))
            stacks = {STUDENT: (load(bundle, other.student),)}
            check = Check(inputs, [(0, canary.position)], stacks)
            wanted = Expectation(check, each.expected, sized)
            rows += held(bundle, entry, canary, wanted, device, alone)
    return rows


def at_size(found: Sequence[S], size: Size) -> S:
    """Return that of a size; UserError where a bundle has none."""
    for each in found:
        if each.size == size:
            return each
    raise UserError(f"{GOLDEN_FILE} has a file for {size_text(size)}, and no such photo: {AGAIN}")


@dataclass(frozen=True)
class Expectation:
    """What a file is called with, and what of it is expected: the student's stacks, the file's own,
    what the canary has of another size, None for the usual one, and the student's `images` of the
    first call beside its stack."""

    check: Check
    own: Saved | None
    sized: Sized | None = None
    images: Arrays = ()


def severity(verdict: Verdict) -> tuple[bool, float]:
    """Return what sorts verdicts, from the worst."""
    return verdict.status == "pass", verdict.psnr_db or 0.0


def held(
    bundle: Path, entry: File, canary: Canary, wanted: Expectation, device: Device, why: str | None
) -> list[GateRow]:
    """Execute a file, unless there is a reason why not, and hold it against all that is expected
    of it."""
    artifact = Artifact(entry.name, entry.target, entry.precision, "", 0)
    text = "" if wanted.sized is None else f"{OTHER_SIZE} {size_text(wanted.sized.size)}, "
    gate = Gate(f"{text}{gate_name(entry.precision, device.name)}", STUDENT, entry.student_db)
    result, verdict = None, Verdict(None, "not-run", why or "")
    if why is None:
        job = wanted.check.job(below(bundle, entry.name), entry.target)
        parent = wanted.check.parents[STUDENT]
        result, verdict = execute(device, job, parent, gate)
        if result and result.outputs and verdict.status == "pass" and wanted.images:
            first = tuple(table[:1] for table in (*parent, *wanted.images))
            made = tuple(table[:1] for table in result.outputs)
            verdict = min(verdict, judge(made, first, gate.threshold_db), key=severity)
    rows = [gate_row(artifact, device.name, gate, verdict)]
    outputs = None if result is None else result.outputs
    if wanted.own is not None:
        same = Gate(f"{text}{SAME_FILE}", f"on {entry.made_by}", entry.same_file_db)
        kept, found = load(bundle, wanted.own), verdict
        if outputs:
            seen = sampled(outputs[0], canary.step if wanted.sized else 1)
            found = judge((seen, *outputs[1:]), (kept,), same.threshold_db)
        rows.append(gate_row(artifact, device.name, same, found))
    tried = canary.gate_of(entry.name)
    if tried is not None:
        tried = replace(tried, name=f"{text}{tried.name}")
        if outputs:
            verdict = canary_verdict(bundle, canary, tried, outputs, wanted.sized)
        rows.append(gate_row(artifact, device.name, tried, verdict))
    return rows
