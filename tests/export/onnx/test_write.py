"""Written ONNX files are whole by ONNX's own checker."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from pocketfocus.quantize.recipes import RECIPES
from tests.export.test_read import artifact


@pytest.mark.parametrize("precision", RECIPES)
def test_types_and_shapes_are_those_that_the_checker_infers(run_dir: Path, precision: str) -> None:
    path = run_dir / artifact(run_dir, "onnx", precision).name
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    told = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    for value in inferred:
        assert told.get(value.name, 0) in (0, value.type.tensor_type.elem_type), value.name
