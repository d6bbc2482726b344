"""What the manifest says of every layer is what is in the files: shown by changing the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pocketfocus.export.targets import TARGETS, left_out
from pocketfocus.models.student import load_student
from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import GROUP, RECIPES, Scheme
from pocketfocus.quantize.toolchains.coreml import SMALLEST_WEIGHT
from pocketfocus.quantize.toolchains.executorch import NO_4_BIT_CONVOLUTIONS, linear_inputs
from pocketfocus.run.manifest import Artifact, load_manifest

INT8 = Scheme(8, "affine", "channel", "static")
WRITTEN = [target for target in TARGETS if target not in left_out()]


def artifact(run_dir: Path, target: str, precision: str) -> Artifact:
    found = load_manifest(run_dir).artifacts
    return next(a for a in found if (a.target, a.precision) == (target, precision))


def scheme(row: dict[str, Any]) -> Scheme:
    return Scheme(row["bits"], row["form"], row["granularity"], row["activations"])


@pytest.mark.parametrize("target", WRITTEN)
@pytest.mark.parametrize("precision", RECIPES)
def test_every_layer_is_stated_and_every_difference_has_its_reason(
    target: str, precision: str, run_dir: Path, small_student: Path
) -> None:
    rows = artifact(run_dir, target, precision).applied["layers"]
    assert set(rows) == set(layers_of(load_student(small_student)))
    for layer, row in rows.items():
        asked = RECIPES[precision].scheme_of(target, layer)
        assert ("why" in row) == (scheme(row) != asked), layer
        assert row.get("asked", str(asked)) == str(asked)
        assert "why" not in row or row["why"], layer


def first(student: Path, wanted: Callable[[Any], bool]) -> tuple[str, Any]:
    """The first layer of a kind, and its path."""
    found = layers_of(load_student(student)).items()
    return next((name, layer) for name, layer in found if wanted(layer))


def is_odd(layer: Any) -> bool:
    """Whether its outputs are no whole groups."""
    return isinstance(layer, nn.Conv2d) and layer.out_channels % 8 > 0


def is_palettized(layer: Any) -> bool:
    """Whether it is a convolution that is large enough for palettes."""
    return isinstance(layer, nn.Conv2d) and layer.weight.numel() > SMALLEST_WEIGHT


def test_what_the_backends_cannot_take(run_dir: Path, small_student: Path) -> None:
    odd, _ = first(small_student, is_odd)
    even, _ = first(small_student, lambda m: is_palettized(m) and not is_odd(m))
    grouped, _ = first(small_student, lambda m: linear_inputs(m) > 0 == linear_inputs(m) % GROUP)
    linear, _ = first(small_student, lambda m: isinstance(m, nn.Linear))
    rows = artifact(run_dir, "executorch", "int4").applied["layers"]
    assert scheme(rows[even]) == INT8
    assert rows[even]["why"] == NO_4_BIT_CONVOLUTIONS
    assert scheme(rows[grouped]) == Scheme(4, "affine", GROUP, "dynamic")
    rows = artifact(run_dir, "coreml", "int4").applied["layers"]
    assert scheme(rows["network.mix"]) == Scheme(16)
    assert rows["network.mix"]["why"] == f"16 inputs are no whole groups of {GROUP}"
    assert scheme(rows["network.encoder.1.0.first"]) == Scheme(4, "affine", "channel")
    assert rows[odd]["bits"] == 16
    assert rows[odd]["why"] == f"weights of {SMALLEST_WEIGHT} elements or fewer stay float16"
    rows = artifact(run_dir, "onnx", "int4").applied["layers"]
    assert rows[even]["bits"] == 4
    assert "unpacked to float32" in rows[even]["why"]
    rows = artifact(run_dir, "executorch", "fp16").applied["layers"]
    assert (rows[odd]["bits"], rows[linear]["bits"]) == (32, 16)
