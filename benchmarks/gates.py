"""The parity gates: what a file is held against, by how much, and how that ended.

The captured graph is held against the eager student, an fp32 file against the captured graph, every
other precision against the fp32 student; a reference's own networks against fp32 PyTorch. A gate's
figure is that of the *worst* output of all calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pocketfocus.export.targets import get_target
from pocketfocus.mobile_harness.device import HOST, PYTORCH, Arrays
from pocketfocus.mobile_harness.devices import gate_word
from pocketfocus.quantize.recipes import RECIPES, Recipe, get_recipe, recipe_from
from pocketfocus.run.manifest import Artifact
from pocketfocus.run.metrics import PEAK, psnr
from pocketfocus.run.results import GateRow, GateStatus, idle

OTHER_SIZE = "photos of"  # how the gate of a file at another size than its usual one begins
DRAWN = "drawn pictures"  # and of one on pictures that no camera takes
DRAWN_DB = 30.0  # which no file has to keep as well as photos
# What a student's outputs are in a picture: gains of finer detail multiply what of a photo is finer
# than its analysis, whose standard deviation is 0.02 to 0.10 of ±1 (docs/quantization.md).
IN_THE_PICTURE = (1.0, 1.0, 0.1)
SAME_FILE = "same file on"  # the host, say
SAME_FILE_DB = 45.0  # the same file on another processor

G = TypeVar("G", bound=GateRow)


@dataclass(frozen=True)
class Gate:
    """What a file is held against: `parent` is `student` or `captured graph`."""

    name: str
    parent: str
    threshold_db: float


STUDENT, CAPTURED_GRAPH = "student", "captured graph"
CAPTURE_GATE = Gate(CAPTURED_GRAPH, STUDENT, 90.0)


@dataclass(frozen=True)
class Verdict:
    """How a gate ended: `psnr_db` of the worst output, None when there is none to score, and of
    which `call` that was."""

    psnr_db: float | None
    status: GateStatus
    why: str = ""
    call: int | None = None


def gate_row(artifact: Artifact, device: str, gate: Gate, verdict: Verdict) -> GateRow:
    """Return the row of a file on a device."""
    return GateRow(
        artifact=artifact.name,
        target=artifact.target,
        precision=artifact.precision,
        device=device,
        gate=gate.name,
        psnr_db=verdict.psnr_db,
        threshold_db=gate.threshold_db,
        status=verdict.status,
        why=verdict.why,
        **({"sha256": artifact.sha256} if artifact.sha256 else {}),
    )


def gate_of(precision: str, device: str = HOST, recipe: Mapping[str, object] | None = None) -> Gate:
    """Return the gate of a file: fp32 shows the runtime's error alone, the others the whole loss.

    `recipe` as the manifest has it; None for the shipped one of that name.
    """
    parent = CAPTURED_GRAPH if precision == "fp32" else STUDENT
    threshold = requested(precision, recipe).min_psnr_db
    return Gate(gate_name(precision, device), parent, threshold)


def gate_name(precision: str, device: str) -> str:
    """Return how a file's gate is called in tables."""
    return f"{precision} file, {gate_word(device)}"


def requested(precision: str, recipe: Mapping[str, object] | None) -> Recipe:
    """Return the shipped recipe of that name, else the one of the artifact's own fields."""
    if precision in RECIPES or not recipe:
        return get_recipe(precision)
    return recipe_from(recipe, f"the manifest's recipe {precision}")


def judge(
    outputs: Arrays, parent: Arrays, threshold_db: float, peak: float | None = PEAK
) -> Verdict:
    """Hold a file's first outputs, each [N, *shape], against those of its parent; the worst
    decides. Of a student's three, each counts as what it is in a picture (`IN_THE_PICTURE`). Those
    that the parent lacks have to be finite.

    `peak` is that of PSNR; None for the range of what the parent gives.
    """
    finite = all(np.isfinite(table).all() for table in outputs)
    outputs = outputs[: len(parent)]
    if [a.shape for a in outputs] != [b.shape for b in parent]:
        found, expected = (
            " and ".join(str(list(a.shape)) for a in side) for side in (outputs, parent)
        )
        return Verdict(None, "fail", f"makes outputs {found}, its parent {expected}")
    if not finite:
        return Verdict(None, "fail", "makes values that are not finite (NaN or infinity)")
    scales = IN_THE_PICTURE if len(parent) == len(IN_THE_PICTURE) else (1.0,) * len(parent)
    figures = [
        (output_psnr(*((a, b) if scale == 1 else (scale * a, scale * b)), peak), call)
        for scale, *tables in zip(scales, outputs, parent, strict=True)
        for call, (a, b) in enumerate(zip(*tables, strict=True))
    ]
    worst, call = min(figures)
    if worst >= threshold_db:
        return Verdict(worst, "pass", call=call)
    which = "worst output has " if len(figures) > 1 else ""
    why = f"{which}{worst:.1f} dB, {threshold_db:g} dB are needed"
    return Verdict(worst, "fail", why, call)


def output_psnr(
    found: NDArray[np.float32], expected: NDArray[np.float32], peak: float | None = PEAK
) -> float:
    """Return PSNR (dB) over one whole output, rounded down to 0.01; 200 at most and if equal."""
    if peak is None:
        peak = float(expected.max() - expected.min())
    made, wanted = (torch.from_numpy(np.ascontiguousarray(each)) for each in (found, expected))
    return math.floor(100 * psnr(made, wanted, peak)) / 100


def own_rows(artifact: Artifact, device: str) -> list[GateRow]:
    """Return the row of the gate that a file's target has beside parity, if it has one."""
    recipe = requested(artifact.precision, artifact.recipe)
    found = get_target(artifact.target).own_gate(artifact, recipe)
    if found is None:
        return []
    verdict = Verdict(None, "pass" if found.passed else "fail", found.why)
    row = gate_row(artifact, device, Gate(found.gate, "", 0.0), verdict)
    return [row.model_copy(update={"threshold_db": None})]


def parity_rows(rows: Sequence[G]) -> list[G]:
    """Return the rows that compare outputs at the usual size: neither those of targets' own gates
    nor those of other sizes and drawn pictures."""
    return [
        row
        for row in rows
        if row.threshold_db is not None and not row.gate.startswith((OTHER_SIZE, DRAWN))
    ]


def failed(rows: Sequence[G]) -> list[G]:
    """Return the rows whose gate failed; any makes the exit code 1."""
    return [row for row in rows if row.status == "fail"]


def unjudged(rows: Sequence[G], each_device: bool = False) -> list[str]:
    """Say of which files nothing could be judged: their process died, or gave nothing back; any
    makes the exit code 2, and so it does when no file at all was executed, on `each_device` where
    no other is there to execute files in its place."""
    died = [f"{row.artifact}, {row.gate}: {row.why}" for row in rows if row.status == "error"]
    files = [row for row in parity_rows(rows) if row.target != PYTORCH]
    if each_device or all(row.status == "not-run" for row in files):
        died += idle(files)
    return died
