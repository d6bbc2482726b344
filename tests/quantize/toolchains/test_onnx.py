"""What onnxruntime's quantizer rounds for operators that compose the result, on a graph by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketfocus.export.onnx.write import session_of
from pocketfocus.quantize.toolchains.onnx import half, unrounded

SCALE, SHAPE = 0.25, (1, 3, 4, 4)
FLOAT = TensorProto.FLOAT
LAYER = "layer/network.conv/Conv"


def quantized(values: str) -> list[onnx.NodeProto]:
    """The two operators that round a value."""
    packed, unpacked = f"{values}_packed", f"{values}_unpacked"
    return [
        helper.make_node("QuantizeLinear", [values, "scale", "zero"], [packed], f"q_{values}"),
        helper.make_node("DequantizeLinear", [packed, "scale", "zero"], [unpacked], f"d_{values}"),
    ]


def model() -> onnx.ModelProto:
    """A photo, rounded for a layer, plus the layer's output, rounded too."""
    constants: dict[str, NDArray[Any]] = {
        "scale": np.array(SCALE, np.float32),
        "zero": np.array(128, np.uint8),
        "weight": np.full((3, 3, 1, 1), 0.1, np.float32),
    }
    nodes = [
        *quantized("photo"),
        helper.make_node("Conv", ["photo_unpacked", "weight"], ["change"], LAYER),
        *quantized("change"),
        helper.make_node("Add", ["photo_unpacked", "change_unpacked"], ["stack"], "compose"),
    ]
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("photo", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("stack", TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(made: onnx.ModelProto, photo: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = session_of(made.SerializeToString(), "it").run(
        None, {"photo": photo}
    )[0]
    return found


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.rint(values / SCALE) * np.float32(SCALE)


def test_what_composes_the_stack_reads_the_photo_itself() -> None:
    """The layer still takes, and gives, integers: they are what makes it fast."""
    photo = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
    product = rounded(photo).sum(1, keepdims=True) * np.float32(0.1)
    change = np.broadcast_to(rounded(product), SHAPE)
    made = model()
    np.testing.assert_allclose(run(made, photo), rounded(photo) + change, atol=1e-5)
    unrounded(made, {"change"}, {"network.conv"})
    np.testing.assert_allclose(run(made, photo), photo + change, atol=1e-5)
    layer, compose = (n for n in made.graph.node if n.op_type in ("Conv", "Add"))
    assert layer.input[0] == "photo_unpacked"
    assert list(compose.input) == ["photo", "change_unpacked"]


@pytest.mark.parametrize("integers", [{"change", "photo"}, {"photo"}])
def test_what_is_made_of_integers_stays_rounded(integers: set[str]) -> None:
    made = model()
    unrounded(made, integers, {"network.conv"})
    compose = made.graph.node[-1]
    assert compose.input[0] == "photo_unpacked"
    assert (compose.input[1] == "change_unpacked") == ("change" in integers)


def test_halves_tell_of_their_own_types_between_layers() -> None:
    """onnxruntime's converter leaves what was inferred of float32; `full_check` infers again."""
    made = onnx.shape_inference.infer_shapes(plain())
    assert {value.type.tensor_type.elem_type for value in made.graph.value_info} == {FLOAT}
    converted = half(made)
    onnx.checker.check_model(converted, full_check=True)
    told = {value.name: value.type.tensor_type.elem_type for value in converted.graph.value_info}
    assert told["change"] == TensorProto.FLOAT16
    photo = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
    np.testing.assert_allclose(run(converted, photo), run(made, photo), atol=2e-3)


def plain() -> onnx.ModelProto:
    """A layer and a sum, without rounding."""
    nodes = [
        helper.make_node("Conv", ["photo", "weight"], ["change"], LAYER),
        helper.make_node("Add", ["photo", "change"], ["stack"], "compose"),
    ]
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("photo", FLOAT, SHAPE)],
        [helper.make_tensor_value_info("stack", FLOAT, SHAPE)],
        [numpy_helper.from_array(np.full((3, 3, 1, 1), 0.1, np.float32), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
