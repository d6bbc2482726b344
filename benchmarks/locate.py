"""Where a file goes wrong: the first layer whose output leaves its tolerance.

Layers are the operators with weights, in order: those of the file and those of its student do the
same work, whatever a toolchain did around them. the target executes the file itself with its
layers' outputs laid open: Core ML's by the MIL check, ONNX's by onnxruntime, a `.pte`'s by XNNPACK.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx

from pocketfocus.benchmarks.checks import SHOWN, fitted_photos, load_parent
from pocketfocus.benchmarks.gates import gate_of
from pocketfocus.data.optics import one_hot
from pocketfocus.export.targets import Layer, get_target
from pocketfocus.quantize.layers import layer_of, operator_of
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import check_artifact, load_manifest
from pocketfocus.run.metrics import psnr

LAYER_MARGIN_DB = 20.0
"""A layer may be this much worse than the stack: the photo that is added last forgives much."""
LOWEST_DB = -999.0
WEIGHTED_ATEN = ("conv1d", "conv2d", "conv_transpose2d", "linear", "matmul", "bmm", "mm", "addmm")
NO_LIMITS = (-math.inf, math.inf)
RECTIFIERS = {"relu": (0.0, math.inf), "relu_": (0.0, math.inf), "relu6": (0.0, 6.0)}


@dataclass(frozen=True)
class Located:
    """A row for every layer, and what they say in a line."""

    rows: list[LayerRow]
    summary: str


@dataclass(frozen=True)
class LayerRow:
    """A layer, or the whole stack, with its PSNR and the least that it may have."""

    layer: str
    operator: str
    psnr_db: float
    tolerance_db: float
    status: Literal["within", "leaves"]


@dataclass(frozen=True)
class TrueLayer:
    """A layer of the student, or a fixed kernel, by its path, and its output.

    Toolchains fuse a rectifier with its layer, so that only what lies within `limits` is compared.
    `weights` counts them; 0 for a product of two values. A `convolution` has its channels first.
    """

    path: str
    value: Tensor
    weights: int
    convolution: bool
    limits: tuple[float, float] = NO_LIMITS


class Recorder(fx.Interpreter):
    """Runs a captured graph and keeps the output of every layer."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.layers: list[TrueLayer] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if operator_of(n) in WEIGHTED_ATEN:
            about = (weights_of(n), operator_of(n).startswith("conv"), limits_behind(n))
            self.layers.append(TrueLayer(layer_name(n), result, *about))
        return result


def weights_of(node: fx.Node) -> int:
    """Return how many weights a convolution or product has; 0 where it has none of its own."""
    weight = node.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or "val" not in weight.meta:
        return 0
    return int(weight.meta["val"].numel())


def limits_behind(node: fx.Node) -> tuple[float, float]:
    """Return the limits of the rectifier that alone reads a node's output, if there is one."""
    if len(node.users) != 1:
        return NO_LIMITS
    (user,) = node.users
    if operator_of(user).startswith("hardtanh"):
        low, high = user.args[1:3] if len(user.args) > 2 else (-1.0, 1.0)
        return float(str(low)), float(str(high))
    return RECTIFIERS.get(operator_of(user), NO_LIMITS)


def layer_name(node: fx.Node) -> str:
    """Return the path of a node's layer, else of its fixed kernel, else the node's own name."""
    weight = next((arg for arg in node.args[1:2] if isinstance(arg, fx.Node)), node)
    return layer_of(node) or (str(weight.target) if weight.op == "get_attr" else node.name)


def locate_fault(folder: Path, name: str, photos: Sequence[Path] | None = None) -> Located:
    """Compare a file with its student layer by layer, on one photo at one position.

    UserError for a file that is not of the run, is damaged, or cannot be executed here.
    """
    manifest = load_manifest(folder)
    known = {a.name: a for a in manifest.artifacts}
    if name not in known:
        raise UserError(f"{folder} holds no {name}: choose from {', '.join(known)}")
    artifact = known[name]
    path = check_artifact(folder, artifact)
    student = load_parent(folder, manifest)
    photo = torch.from_numpy(fitted_photos(photos, manifest.size)[SHOWN[0] :][:1])
    feeds = {"photo": photo, "position": one_hot(SHOWN[1])}
    with torch.no_grad():
        captured = torch.export.export(student, tuple(feeds.values())).module()
        recorder = Recorder(captured)
        truth = recorder.run(*feeds.values())[0]
    found, stack = get_target(artifact.target).layers(path, feeds)
    gate = gate_of(artifact.precision, recipe=artifact.recipe)
    return compare(paired(found, recorder.layers), (stack, truth), gate.threshold_db)


def paired(found: Sequence[Layer], truth: Sequence[TrueLayer]) -> list[tuple[Layer, TrueLayer]]:
    """Pair every layer of the student with that of the file, in the student's order.

    By its path where the file tells, else the first of the same sizes that is left. UserError when
    they are not the same layers.
    """
    left, pairs = list(found), []
    for true in truth:
        match = next((layer for layer in left if is_same(layer, true)), None)
        if match is not None:
            left.remove(match)
            pairs.append((match, true))
    if left or len(pairs) != len(truth):
        raise UserError(
            f"the file has {len(found)} layers, its student {len(truth)}, or they are of other "
            "sizes: export it again"
        )
    return pairs


def is_same(found: Layer, true: TrueLayer) -> bool:
    """Return whether a file's layer can be that one of the student, by all that the file tells."""
    if found.value.numel() != true.value.numel():
        return False
    if found.weights and true.weights and found.weights != true.weights:
        return False
    return found.path in ("", true.path)


def ordered(found: Layer, true: TrueLayer) -> Tensor:
    """Return a file's output with the student's dimensions."""
    shape = true.value.shape
    if not (found.channels_last and true.convolution):
        return found.value.reshape(shape)
    batch, channels, *places = shape
    return found.value.reshape(batch, *places, channels).movedim(-1, 1)


def compare(
    pairs: Sequence[tuple[Layer, TrueLayer]],
    stacks: tuple[Tensor, Tensor],
    gate_db: float,
) -> Located:
    """Return PSNR of every layer, its peak the true layer's range, and of both stacks."""
    rows: list[LayerRow] = []
    for found, true in pairs:
        low, high = true.limits
        value, wanted = (v.clamp(low, high) for v in (ordered(found, true), true.value))
        peak = float(wanted.max() - wanted.min()) or 1.0
        figure = psnr(value, wanted, peak)
        rows.append(layer_row(true.path, found.operator, figure, gate_db - LAYER_MARGIN_DB))
    rows.append(layer_row("stack", "output", psnr(*stacks), gate_db))
    bad = next((row for row in rows if row.status == "leaves"), None)
    summary = "every layer stays within its tolerance"
    if bad is not None:
        summary = (
            f"first to leave its tolerance: {bad.operator}, the student's {bad.layer}, with "
            f"{bad.psnr_db:.1f} dB of {bad.tolerance_db:g} dB"
        )
    return Located(rows, summary)


def layer_row(layer: str, operator: str, psnr_db: float, tolerance_db: float) -> LayerRow:
    """Return a layer's row; a figure that is none at all (NaN) leaves every tolerance."""
    figure = max(psnr_db, LOWEST_DB) if math.isfinite(psnr_db) else LOWEST_DB
    status: Literal["within", "leaves"] = "within" if psnr_db >= tolerance_db else "leaves"
    return LayerRow(layer, operator, figure, tolerance_db, status)
