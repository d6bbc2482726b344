"""What the manifest says of every layer is what is in the files: shown by changing the files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from pocketfocus.export.taken import coreml, executorch
from pocketfocus.export.taken.onnx import schemes
from pocketfocus.export.targets import TARGETS
from pocketfocus.manifest import Artifact, load_manifest
from pocketfocus.quantize.coreml import SMALLEST_WEIGHT
from pocketfocus.quantize.executorch import NO_4_BIT_CONVOLUTIONS, linear_inputs
from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import GROUP, RECIPES, Scheme
from pocketfocus.student import load_student

INT8 = Scheme(8, "affine", "channel", "static")


def artifact(run_dir: Path, target: str, precision: str) -> Artifact:
    found = load_manifest(run_dir).artifacts
    return next(a for a in found if (a.target, a.precision) == (target, precision))


def scheme(row: dict[str, Any]) -> Scheme:
    return Scheme(row["bits"], row["form"], row["granularity"], row["activations"])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", RECIPES)
def test_every_layer_is_stated_and_every_difference_has_its_reason(
    target: str, precision: str, run_dir: Path, small_student: Path
) -> None:
    rows = artifact(run_dir, target, precision).taken["layers"]
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
    odd, odd_layer = first(small_student, is_odd)
    even, _ = first(small_student, lambda m: is_palettized(m) and not is_odd(m))
    grouped, _ = first(small_student, lambda m: linear_inputs(m) > 0 == linear_inputs(m) % GROUP)
    linear, _ = first(small_student, lambda m: isinstance(m, nn.Linear))
    rows = artifact(run_dir, "executorch", "int4").taken["layers"]
    assert scheme(rows[odd]) == INT8
    assert rows[odd]["why"] == NO_4_BIT_CONVOLUTIONS
    assert scheme(rows[grouped]) == Scheme(4, "affine", GROUP, "dynamic")
    rows = artifact(run_dir, "coreml", "int4").taken["layers"]
    assert scheme(rows[even]) == Scheme(4, "palette", 8)
    assert rows[odd]["bits"] == 16
    assert rows[odd]["why"] == f"{odd_layer.out_channels} outputs are no whole groups of 8"
    rows = artifact(run_dir, "onnx", "int4").taken["layers"]
    assert rows[even]["bits"] == 4
    assert "unpacked to float32" in rows[even]["why"]
    rows = artifact(run_dir, "executorch", "fp16").taken["layers"]
    assert (rows[odd]["bits"], rows[linear]["bits"]) == (32, 16)


def test_another_onnx_graph_is_another_statement(run_dir: Path, small_student: Path) -> None:
    name, layer = first(small_student, is_odd)
    model = onnx.load(run_dir / artifact(run_dir, "onnx", "int8").name)
    assert set(schemes(model).values()) == {INT8}
    node = next(n for n in model.graph.node if n.name.startswith(f"layer/{name}/"))
    weight = np.zeros(tuple(layer.weight.shape), np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "other"))
    node.input[1] = "other"
    found = schemes(model)
    assert found.pop(name) == Scheme(16)
    assert set(found.values()) == {INT8}
    node.input[1] = "photo"
    with pytest.raises(RuntimeError, match="come from no constant"):
        schemes(model)


def test_another_xnnpack_graph_is_another_statement(run_dir: Path) -> None:
    (graph,) = executorch.graphs(run_dir / artifact(run_dir, "executorch", "int8").name)
    fixed = Scheme()  # means of 2x2 pixels, and the position's mask
    assert {found for found, _ in executorch.graph_schemes(graph)} == {INT8, fixed}
    tensors = {
        value["tensor_value"]["id_out"]: value["tensor_value"]
        for value in (entry["xvalue_union"] for entry in graph["xvalues"])
        if "tensor_value" in value
    }
    products = [n for n in graph["xnodes"] if n["xnode_union_type"] == "XNNFullyConnected"]
    kernels = [node["xnode_union"]["filter_id"] for node in products]
    weight = next(tensors[kernel] for kernel in kernels if kernel in tensors)  # a quantized one
    weight["datatype"] = "xnn_datatype_qcint4"
    found = [scheme for scheme, _ in executorch.graph_schemes(graph)]
    assert found.count(Scheme(4, "affine", "channel", "static")) == 1
    weight["datatype"] = "xnn_datatype_bf16"
    with pytest.raises(RuntimeError, match="xnn_datatype_bf16 times xnn_datatype_qint8"):
        list(executorch.graph_schemes(graph))


def test_another_package_is_another_statement(run_dir: Path, tmp_path: Path) -> None:
    """A file in the place of another: the statement follows the file, not the name."""
    path = tmp_path / "student-int4.mlpackage"
    shutil.copytree(run_dir / artifact(run_dir, "coreml", "fp16").name, path)
    assert {found for found, _ in coreml.schemes(path)} == {Scheme(16)}
    found = coreml.schemes(run_dir / artifact(run_dir, "coreml", "int4").name)
    assert {scheme.bits for scheme, _ in found} == {4, 16}
