"""The layers of a network, and which operators of a captured graph are quantized with them.

A layer is a `Conv2d`, `ConvTranspose2d` or `Linear` module, named by its path in the network. What
no layer follows only composes the result (the photo is added, discs of defocus are weighed): it
stays in floating point, and so does a convolution by a fixed kernel, which is no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

fx.config.do_not_emit_stack_traces = True  # of every operator: a tenth of an export's time

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
LAYER_TYPES = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in LAYERS)
MOST_MULTIPLES = 4096  # of a side
WEIGHTED_ATEN = ("conv1d", "conv2d", "conv_transpose2d", "convolution", "linear")

Calls = Iterable[tuple[Tensor, ...]]
"""What a network is called with, each time; the first one also fixes the shapes."""

Weighted = tuple[str, int]
"""Path of the layer of a convolution or product ("" for none), and its count of weights."""


def capture(network: nn.Module, calls: Calls, multiple: int = 0) -> ExportedProgram:
    """The torch.export program of a network at the static shapes of its calls; or, with
    `multiple`, for any height and width of the first input that are multiples of so many pixels."""
    first = next(iter(calls))
    with torch.no_grad():
        return torch.export.export(network, first, dynamic_shapes=sides(first, multiple))


def sides(call: tuple[Tensor, ...], multiple: int) -> tuple[dict[int, Any] | None, ...] | None:
    """What torch.export is told of a call's shapes, see `capture`; None where all are static."""
    if not multiple:
        return None
    height, width = (multiple * Dim(name, min=2, max=MOST_MULTIPLES) for name in ("h", "w"))
    return ({2: height, 3: width}, *[None] * (len(call) - 1))


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Every layer by its path, in the order of the modules (not always that of execution)."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LAYERS)}


def layer_of(node: fx.Node) -> str:
    """The path of the layer whose convolution or product a node is; "" for any other node."""
    stack: list[Any] = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack or not is_weighted(node):
        return ""
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return str(path) if name in LAYER_TYPES else ""


def is_weighted(node: fx.Node) -> bool:
    """Whether a node is a convolution or a matrix product of `torch.export`."""
    return operator_of(node) in WEIGHTED_ATEN


def operator_of(node: fx.Node) -> str:
    """A node's name in PyTorch's operators; "" for another kind of node."""
    namespace, _, rest = str(node.target).partition(".")
    return rest.split(".")[0] if namespace == "aten" else ""


def leading_to_layers(graph: fx.Graph) -> set[str]:
    """The names of the nodes that a layer follows, at any distance."""
    leading: set[str] = set()
    for node in reversed(graph.nodes):
        if any(user.name in leading or layer_of(user) for user in node.users):
            leading.add(node.name)
    return leading


def execution_order(graph: fx.Graph) -> list[Weighted]:
    """Every convolution and product of a graph."""
    return [
        (layer_of(node), node.args[1].meta["val"].numel())
        for node in graph.nodes
        if is_weighted(node)
    ]


def quantizable(
    graph: fx.Graph, layers: Collection[str], between: bool
) -> Callable[[fx.Node], bool]:
    """A filter for these layers (with a ReLU, if one follows) and, if `between`, for the operators
    that lead to any layer."""
    leading = leading_to_layers(graph)

    def chosen(node: fx.Node) -> bool:
        if node.op != "call_function" or "relu" in str(node.target):
            return True
        if is_weighted(node):
            return layer_of(node) in layers
        return between and node.name in leading

    return chosen
