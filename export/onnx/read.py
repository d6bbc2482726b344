"""The weights of an ONNX graph: layers are known by the names of their operators."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from pocketfocus.quantize.recipes import Granularity, Scheme
from pocketfocus.quantize.toolchains.onnx import FOUR_BIT, INT8_ARITHMETIC, LAYER, layer_of_name

if TYPE_CHECKING:
    from pocketfocus.export.network import Network

MOVES = ("Reshape", "Transpose", "Cast", "Squeeze", "Unsqueeze", "Identity")
BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}


class Graph:
    """Who makes what in a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.makers = {value: node for node in self.nodes for value in node.output}
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def source(self, value: str) -> onnx.NodeProto | None:
        """The operator that made a value, before it was only moved about."""
        node = self.makers.get(value)
        while node is not None and node.op_type in MOVES:
            node = self.makers.get(node.input[0])
        return node

    def constant(self, value: str) -> TensorProto | None:
        """The constant that a value is, moved about at most."""
        while value not in self.constants:
            node = self.makers.get(value)
            if node is None or node.op_type not in MOVES:
                return None
            value = node.input[0]
        return self.constants[value]


def layer_schemes(path: Path, _: Network) -> dict[str, Scheme]:
    """See `Target.read`."""
    return schemes(onnx.load(path))


def schemes(model: onnx.ModelProto) -> dict[str, Scheme]:
    """The scheme of every layer of the network, by its path.

    RuntimeError for a type of weights that is not known here.
    """
    graph = Graph(model)
    return {
        layer_of_name(node.name): scheme_of(node, graph)
        for node in graph.nodes
        if node.name.startswith(LAYER)
    }


def scheme_of(node: onnx.NodeProto, graph: Graph) -> Scheme:
    """The scheme of one layer's operator."""
    if node.op_type == FOUR_BIT:
        given = attributes(node)
        dynamic = given.get("accuracy_level", 0) == INT8_ARITHMETIC
        activations = "dynamic" if dynamic else "float"
        return Scheme(given["bits"], "affine", given["block_size"], activations)
    plain = graph.constant(node.input[1])
    if plain is not None:
        return Scheme(bits_of(plain))
    scaled = graph.source(node.input[1])
    if scaled is None or scaled.op_type != "DequantizeLinear":
        raise RuntimeError(f"the weights of {node.name} come from no constant")
    integers, scales = graph.constants[scaled.input[0]], graph.constants[scaled.input[1]]
    block = attributes(scaled).get("block_size", 0)
    granularity: Granularity = block or ("tensor" if math.prod(scales.dims) == 1 else "channel")
    before = graph.source(node.input[0])
    static = before is not None and before.op_type == "DequantizeLinear"
    return Scheme(bits_of(integers), "affine", granularity, "static" if static else "float")


def bits_of(tensor: TensorProto) -> int:
    """How many bits a constant's type has."""
    if tensor.data_type not in BITS:
        raise RuntimeError(f"weights of type {TensorProto.DataType.Name(tensor.data_type)}")
    return BITS[tensor.data_type]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """An operator's attributes by name."""
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
