"""What onnxruntime's quantizer rounds for operators that compose the result, on a graph by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketfocus.export.onnx.read import schemes
from pocketfocus.export.onnx.write import session_of
from pocketfocus.models.student import build_student
from pocketfocus.quantize.recipes import Scheme, get_recipe
from pocketfocus.quantize.toolchains import coreml
from pocketfocus.quantize.toolchains import onnx as toolchain
from pocketfocus.quantize.toolchains.onnx import half, integer_weights, left_alone, unrounded

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


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_weights_alone_become_integers_of_8_bits(operator: str) -> None:
    """With a scale a channel of the output; photos are still multiplied as floats."""
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(3, 3, 1, 1)) * [[[[0.01]]], [[[1.0]]], [[[100.0]]]]).astype("f4")
    weight = weight.transpose(1, 0, 2, 3) if operator == "ConvTranspose" else weight
    made = plain()
    layer = next(node for node in made.graph.node if node.op_type == "Conv")
    layer.op_type = operator
    held = next(tensor for tensor in made.graph.initializer if tensor.name == layer.input[1])
    held.CopyFrom(numpy_helper.from_array(weight, held.name))
    photo = rng.uniform(-1, 1, SHAPE).astype(np.float32)
    before = run(made, photo) - photo
    found = integer_weights(made, {"network.conv": Scheme(8, "affine", "channel", "float")})
    assert schemes(found) == {"network.conv": Scheme(8, "affine", "channel", "float")}
    assert TensorProto.INT8 in {tensor.data_type for tensor in found.graph.initializer}
    largest = np.abs(weight).max((1, 2, 3) if operator == "Conv" else (0, 2, 3)) / 254 * 3
    off = np.abs(run(found, photo) - photo - before).max((0, 2, 3))
    assert (off <= largest + 1e-5).all() and (off > 0).all()


def test_additions_of_floats_between_float_layers_are_not_rounded() -> None:
    def layer(name: str, given: str, made: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [given, "weight"], [made], f"layer/{name}/Conv")

    def add(name: str, first: str, second: str) -> onnx.NodeProto:
        return helper.make_node("Add", [first, second], [name], f"add_{name}")

    nodes = [
        *(layer("a", "photo", "a"), layer("b", "a", "b"), add("floats", "a", "b")),
        *(layer("c", "floats", "c"), layer("d", "c", "d"), add("integers", "c", "d")),
        layer("e", "integers", "e"),
    ]
    made = helper.make_model(helper.make_graph(nodes, "made by hand", [], []))
    alone = left_alone(made, {"c", "d", "e"}, between=True)
    assert alone == ["layer/a/Conv", "layer/b/Conv", "add_floats"]


@pytest.mark.parametrize("chosen", [toolchain, coreml])
@pytest.mark.parametrize("recipe", ["int8", "mixed"])
def test_what_the_prior_sees_first_stays_a_float(chosen: Any, recipe: str) -> None:
    """In int8 it cost the gains of detail 12 dB (docs/quantization.md)."""
    layers = chosen.choices(get_recipe(recipe), build_student("tiny"))
    first = [name for name in layers if name.startswith(("network.prior.s", "network.prior.b"))]
    assert len(first) > 10
    assert all(layers[name].scheme.activations == "float" for name in first)
    assert layers["network.prior.mix"].scheme.activations == "static"


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
