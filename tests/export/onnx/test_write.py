"""Written ONNX files are whole by ONNX's own checker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest

from pocketfocus.quantize.recipes import RECIPES


@pytest.mark.parametrize("precision", RECIPES)
def test_types_and_shapes_are_those_that_the_checker_infers(
    exported: Callable[[Sequence[str]], Path], precision: str
) -> None:
    name = f"onnx/student-{precision}.onnx"
    path = exported([name]) / name
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    told = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    del model.graph.value_info[:]
    for value in onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info:
        found = value.type.tensor_type.elem_type
        assert told.get(value.name, found) == found, value.name
