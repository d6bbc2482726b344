"""The weights of a .pte file, as XNNPACK's own graph in it declares them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from pocketfocus.quantize.recipes import Granularity, Scheme
from pocketfocus.run.scratch import temporary_folder

BACKEND, METHOD = "XnnpackBackend", "forward"
SCHEMA = "schema.fbs"
WEIGHTED = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d", "XNNFullyConnected")
NOT_JSON = re.compile(r":\s*(-?(?:inf|nan))\b")  # as flatc writes such floats
FLOATS = {"xnn_datatype_fp32": 32, "xnn_datatype_fp16": 16}
INTEGERS: dict[str, tuple[int, Granularity]] = {
    "xnn_datatype_qint8": (8, "tensor"),
    "xnn_datatype_qcint8": (8, "channel"),
    "xnn_datatype_qcint4": (4, "channel"),
    "xnn_datatype_qbint4": (4, 0),  # the group is beside it
}
ACTIVATIONS = {
    "xnn_datatype_fp32": "float",
    "xnn_datatype_fp16": "float",
    "xnn_datatype_qint8": "static",
    "xnn_datatype_quint8": "static",
    "xnn_datatype_qdint8": "dynamic",
    "xnn_datatype_qpint8": "dynamic",
}


def schemes(path: Path) -> list[tuple[Scheme, int]]:
    """The scheme and the count of weights of every convolution and product by a constant, in the
    order of execution.

    RuntimeError for a type of weights or activations that is not known here.
    """
    return [scheme for graph in graphs(path) for scheme in graph_schemes(graph)]


def graphs(path: Path) -> Iterator[dict[str, Any]]:
    """XNNPACK's graphs in a file's usual method, as JSON, in the order in which they are called."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    plan = usual(program)
    for instruction in plan.chains[0].instructions:
        index = getattr(instruction.instr_args, "delegate_index", None)
        if index is not None and plan.delegates[index].id == BACKEND:
            blob = program.backend_delegate_data[plan.delegates[index].processed.index].data
            yield decoded(bytes(blob))


def usual(program: Any) -> Any:
    """The plan of the method for photos of the usual size: others have the same weights."""
    return next(plan for plan in program.execution_plan if plan.name == METHOD)


def decoded(blob: bytes, schema: bytes | None = None) -> dict[str, Any]:
    """The graph in a delegate's blob, by executorch's own schema or another, and its flatbuffer
    compiler."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    end = header.flatbuffer_offset + header.flatbuffer_size
    with temporary_folder("pte") as scratch:
        described, binary = scratch / SCHEMA, scratch / "graph.bin"
        described.write_bytes(schema or schema_of())
        binary.write_bytes(blob[header.flatbuffer_offset : end])
        _flatc_decompile(str(scratch), str(described), str(binary))
        text = (scratch / "graph.json").read_text(encoding="utf-8")
    graph: dict[str, Any] = json.loads(NOT_JSON.sub(r': "\1"', text))
    return graph


def schema_of() -> bytes:
    """XNNPACK's schema, as this executorch has it."""
    from executorch.backends.xnnpack import serialization

    return resources.files(serialization).joinpath(SCHEMA).read_bytes()


def values_of(graph: dict[str, Any]) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """The tensors of a graph, and what scales those that are quantized, by their numbers."""
    values = {}
    for value in graph["xvalues"]:
        found = value["xvalue_union"]
        tensor = found.get("tensor_value", found)
        values[tensor["id_out"]] = (tensor, found.get("quant_params", {}))
    return values


def graph_schemes(graph: dict[str, Any]) -> Iterator[tuple[Scheme, int]]:
    """Give the scheme and the count of weights of the nodes of one graph."""
    values = values_of(graph)
    for node in graph["xnodes"]:
        if node["xnode_union_type"] in WEIGHTED:
            operands = node["xnode_union"]
            (given, _), (weight, scales) = (values[operands[k]] for k in ("input1_id", "filter_id"))
            found = scheme_of(weight["datatype"], scales, given["datatype"])
            yield found, math.prod(weight["dims"])


def scheme_of(datatype: str, scales: dict[str, Any], activations: str) -> Scheme:
    """What XNNPACK's types of a weight and of its activations mean."""
    if datatype in FLOATS:
        return Scheme(FLOATS[datatype])
    if datatype not in INTEGERS or activations not in ACTIVATIONS:
        raise RuntimeError(f"XNNPACK's {datatype} times {activations} is not known")
    bits, granularity = INTEGERS[datatype]
    return Scheme(bits, "affine", granularity or scales["group_size"], ACTIVATIONS[activations])
