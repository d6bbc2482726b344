"""What is read from an ONNX file follows its graph: shown by changing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from pocketfocus.export.onnx.read import schemes
from pocketfocus.quantize.recipes import Scheme
from tests.export.test_read import INT8, artifact, first, is_odd


def test_another_onnx_graph_is_another_statement(run_dir: Path, small_student: Path) -> None:
    name, layer = first(small_student, is_odd)
    model = onnx.load(run_dir / artifact(run_dir, "onnx", "int8").name)
    of_one_output = replace(INT8, granularity="tensor")  # the map of dioptres
    assert set(schemes(model).values()) == {INT8, of_one_output, Scheme(32)}
    node = next(n for n in model.graph.node if n.name.startswith(f"layer/{name}/"))
    weight = np.zeros(tuple(layer.weight.shape), np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "other"))
    node.input[1] = "other"
    found = schemes(model)
    assert found.pop(name) == Scheme(16)
    assert set(found.values()) == {INT8, of_one_output, Scheme(32)}
    node.input[1] = "photo"
    with pytest.raises(RuntimeError, match="come from no constant"):
        schemes(model)
