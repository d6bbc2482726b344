"""Where a file goes wrong: the first layer whose output leaves its tolerance.

Layers are the operators with weights, in order: those of the file and those of its student do the
same work, whatever a toolchain did around them. Only Core ML programs can be opened up so far, by
the MIL check; the other runtimes keep what happens inside to themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pocketfocus.benchmarks.verify import (
    SHOWN,
    fitted_photos,
    gate_of,
    is_written,
    load_parent,
)
from pocketfocus.errors import UserError
from pocketfocus.files import Row
from pocketfocus.manifest import check_artifact, load_manifest
from pocketfocus.metrics import psnr
from pocketfocus.optics import one_hot

LAYER_MARGIN_DB = 20.0
"""A layer may be this much worse than the stack: the photo that is added last forgives much."""
WEIGHTED = ("conv", "conv_transpose", "linear", "matmul")
WEIGHTED_ATEN = ("conv1d", "conv2d", "conv_transpose2d", "linear", "matmul", "bmm", "mm", "addmm")

Layers = list[tuple[str, str, Tensor]]
"""(name, operator, output) of every layer, in order."""


@dataclass(frozen=True)
class Located:
    """`{layer, operator, psnr_db, tolerance_db, status}` a layer, and what they say in a line."""

    rows: list[Row]
    summary: str


class Recorder(fx.Interpreter):
    """Runs a captured graph and keeps the output of every layer."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.layers: Layers = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        kind = str(n.target).split(".")[1] if str(n.target).startswith("aten.") else ""
        if kind in WEIGHTED_ATEN:
            self.layers.append((layer_name(n), kind, result))
        return result


def layer_name(node: fx.Node) -> str:
    """The path of the module that a node came from, or the node's own name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack and stack[-1][0] else node.name


def locate_fault(folder: Path, name: str, photos: Sequence[Path] | None = None) -> Located:
    """Compare a file with its student layer by layer, on one photo at one position.

    UserError for a file that is not of the run, is damaged, or cannot be opened up.
    """
    manifest = load_manifest(folder)
    known = {a.name: a for a in manifest.artifacts if is_written(a)}
    if name not in known:
        raise UserError(f"{folder} holds no {name}: choose from {', '.join(known)}")
    artifact = known[name]
    if artifact.target != "coreml":
        raise UserError(
            f"{name} cannot be opened up layer by layer, only Core ML packages can: locate in "
            f"coreml/student-{artifact.precision}.mlpackage, made by the same recipe"
        )
    path = check_artifact(folder, artifact)
    student = load_parent(folder, manifest)
    photo = torch.from_numpy(fitted_photos(photos, manifest.size)[SHOWN[0] :][:1])
    feeds = {"photo": photo, "position": one_hot(SHOWN[1])}
    with torch.no_grad():
        captured = torch.export.export(student, tuple(feeds.values())).module()
        recorder = Recorder(captured)
        stack = recorder.run(*feeds.values())
    truth = [*recorder.layers, ("stack", "output", stack)]
    gate = gate_of(artifact.precision, recipe=artifact.recipe)
    return compare(package_layers(path, feeds), truth, gate.threshold_db)


def package_layers(path: Path, feeds: Mapping[str, Tensor]) -> Layers:
    """The layers of a Core ML package, and its output."""
    from pocketfocus.export.mil.program import load_program

    layers: Layers = []

    def watch(name: str, kind: str, value: Tensor) -> None:
        if kind in WEIGHTED:
            layers.append((name, kind, value))

    ((name, stack),) = load_program(path)(feeds, watch=watch).items()
    return [*layers, (name, "output", stack)]


def compare(found: Layers, truth: Layers, gate_db: float) -> Located:
    """PSNR of every layer, its peak the true layer's range; the stack's is 2."""
    sizes = [[value.numel() for _, _, value in layers] for layers in (found, truth)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the file has {len(found) - 1} layers, its student {len(truth) - 1}, or they are of "
            "other sizes: export it again"
        )
    rows: list[Row] = []
    for (name, kind, value), (layer, _, true) in zip(found, truth, strict=True):
        last = kind == "output"
        peak = 2.0 if last else float(true.max() - true.min()) or 1.0
        figure = psnr(value.reshape(true.shape), true, peak)
        tolerance = gate_db if last else gate_db - LAYER_MARGIN_DB
        rows.append(
            {
                "layer": layer,
                "operator": f"{kind} {name}",
                "psnr_db": max(figure, -999.0),
                "tolerance_db": tolerance,
                "status": "within" if figure >= tolerance else "leaves",
            }
        )
    bad = next((row for row in rows if row["status"] == "leaves"), None)
    if bad is None:
        return Located(rows, "every layer stays within its tolerance")
    return Located(
        rows,
        f"first to leave its tolerance: {bad['operator']}, the student's {bad['layer']}, with "
        f"{bad['psnr_db']:.1f} dB of {bad['tolerance_db']:g} dB",
    )
