"""ONNX files: onnxruntime executes the graph with the layers' values as outputs beside the stack.

A value is taken behind what onnxruntime fuses with its layer: the bias of a matrix product, a
rectifier, rounding to int8 and back. So the kernels stay those that execute the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor

from pocketfocus.export.onnx.write import session_of
from pocketfocus.export.targets import Layer
from pocketfocus.quantize.toolchains.onnx import FOUR_BIT, WEIGHTED, layer_of_name

OPERATORS = (*WEIGHTED, FOUR_BIT)
PRODUCTS = ("MatMul", FOUR_BIT)  # whose bias is an addition behind them
BEHIND = ("Relu", "Clip", "QuantizeLinear", "DequantizeLinear")


def layers(path: Path, feeds: Mapping[str, Tensor]) -> tuple[list[Layer], Tensor]:
    """See `Target.layers`; UserError for a graph that onnxruntime does not take."""
    model = onnx.load(path)
    seen = {
        node.output[0]: (node, ends_at(model.graph, node))
        for node in model.graph.node
        if node.op_type in OPERATORS
    }
    given_already = [value.name for value in model.graph.output]
    stack = given_already[0]
    wanted = list(dict.fromkeys(end for _, end in seen.values() if end not in given_already))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = session_of(model.SerializeToString(), f"{path}, opened up,")
    given = {name: tensor.numpy() for name, tensor in feeds.items()}
    names = [*given_already, *wanted]
    values = session.run(names, given)
    found = dict(zip(names, map(torch.from_numpy, values), strict=True))
    named = [
        Layer(path_of(node), f"{node.op_type} {node.name}", found[end].float())
        for node, end in seen.values()
    ]
    return named, found[stack]


def path_of(node: onnx.NodeProto) -> str:
    """The layer's path by the operator's name, or that of its fixed kernel."""
    return layer_of_name(node.name) or str(node.input[1])


def ends_at(graph: onnx.GraphProto, node: onnx.NodeProto) -> str:
    """The name of the value behind an operator and what is fused with it."""
    value = str(node.output[0])
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {
        n.output[0]
        for n in graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in constants
    }
    biases = ["Add"] if node.op_type in PRODUCTS else []
    while True:
        readers = [user for user in graph.node if value in user.input]
        if len(readers) != 1 or readers[0].op_type not in (*BEHIND, *biases):
            return value
        (user,) = readers
        others = [name for name in user.input if name != value]
        if not all(name in constants or not name for name in others):
            return value  # another layer's output is added
        if user.op_type == "Add":
            biases = []
        value = str(user.output[0])
