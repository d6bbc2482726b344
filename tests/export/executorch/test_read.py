"""What is read from a .pte file follows XNNPACK's graph in it: shown by changing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pocketfocus.export.executorch import read as executorch
from pocketfocus.quantize.recipes import Scheme
from tests.export.test_read import INT8, artifact


def test_another_xnnpack_graph_is_another_statement(run_dir: Path) -> None:
    (graph,) = executorch.graphs(run_dir / artifact(run_dir, "executorch", "int8").name)
    pixels = replace(INT8, activations="dynamic")
    fixed = Scheme()  # means of 2x2 pixels, and the position's mask
    assert {found for found, _ in executorch.graph_schemes(graph)} == {INT8, pixels, fixed}
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
