"""`.pte` files: the delegate's own graph gets the layers' values as further outputs.

XNNPACK shows nothing of what happens inside it, and an ETDump has times of its operators only. So
the file is taken apart, with its weights and scales bit for bit as they are: in XNNPACK's graph the
output of every convolution and product is declared external, the program gets memory for it and
hands it out, and the same runtime executes that. What is seen is the file's own arithmetic, not
that of a model lowered anew.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketfocus.export.executorch.read import (
    BACKEND,
    SCHEMA,
    WEIGHTED,
    decoded,
    schema_of,
    usual,
    values_of,
)
from pocketfocus.export.executorch.write import load
from pocketfocus.export.quiet import quiet, quiet_native
from pocketfocus.export.targets import Layer
from pocketfocus.run.scratch import temporary_folder

PRODUCTS = (*WEIGHTED, "XNNBatchMatrixMultiply")
OUTPUT_FLAG = 2  # XNN_VALUE_FLAG_EXTERNAL_OUTPUT
PLANNED = 1  # the runtime's memory for values
ALIGNMENT = 64  # bytes
DTYPES = {
    "xnn_datatype_fp32": torch.float32,
    "xnn_datatype_fp16": torch.float16,
    "xnn_datatype_qint8": torch.int8,
    "xnn_datatype_quint8": torch.uint8,
}


@dataclass(frozen=True)
class Shown:
    """A value that a graph is made to give: of which operator, and what its integers mean."""

    kind: str
    place: int
    weights: int
    tensor: Mapping[str, Any]
    scale: float
    zero: int

    def layer(self, value: Tensor) -> Layer:
        """The value as floats."""
        found = (value.float() - self.zero) * self.scale
        return Layer("", f"{self.kind} {self.place}", found, self.weights, channels_last=True)


def layers(path: Path, feeds: Mapping[str, Tensor]) -> tuple[list[Layer], Tensor]:
    """See `Target.layers`."""
    with temporary_folder("pte") as scratch:
        opened = scratch / path.name
        with quiet():
            content, shown = opened_up(path.read_bytes())
        opened.write_bytes(content)
        module = load(opened)
        with quiet_native():
            outputs: Any = module.forward([tensor.contiguous() for tensor in feeds.values()])
        made = [output.clone() for output in outputs]
    values = made[len(made) - len(shown) :]
    return [one.layer(value) for one, value in zip(shown, values, strict=True)], made[0]


def opened_up(content: bytes) -> tuple[bytes, list[Shown]]:
    """A `.pte` that gives, after its own outputs, those of its layers, and what they are."""
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary

    file = deserialize_pte_binary(content)
    plan = usual(file.program)
    shown: list[Shown] = []
    for instruction in plan.chains[0].instructions:
        index = getattr(instruction.instr_args, "delegate_index", None)
        if index is None or plan.delegates[index].id != BACKEND:
            continue
        data = file.program.backend_delegate_data[plan.delegates[index].processed.index]
        data.data, added = widened(bytes(data.data), len(shown))
        for one in added:
            plan.values.append(planned(plan, one.tensor))
            instruction.instr_args.args.append(len(plan.values) - 1)
            plan.outputs.append(len(plan.values) - 1)
        shown += added
    return bytes(serialize_pte_binary(file)), shown


def planned(plan: Any, tensor: Mapping[str, Any]) -> Any:
    """A value of the program with memory of its own, for one of XNNPACK's."""
    from executorch.exir import schema
    from executorch.exir.tensor import scalar_type_enum

    dtype, sizes = DTYPES[tensor["datatype"]], list(tensor["dims"])
    start = -(-plan.non_const_buffer_sizes[PLANNED] // ALIGNMENT) * ALIGNMENT
    plan.non_const_buffer_sizes[PLANNED] = start + math.prod(sizes) * dtype.itemsize
    return schema.EValue(
        schema.Tensor(
            scalar_type=scalar_type_enum(dtype),
            storage_offset=0,
            sizes=sizes,
            dim_order=list(range(len(sizes))),
            requires_grad=False,
            layout=0,
            data_buffer_idx=0,
            allocation_info=schema.AllocationDetails(PLANNED, start % 2**32, start // 2**32),
            shape_dynamism=schema.TensorShapeDynamism.STATIC,
        )
    )


def widened(blob: bytes, before: int) -> tuple[bytes, list[Shown]]:
    """A delegate's blob whose graph also gives what its layers give; `before` counts those of
    other graphs."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
        CONSTANT_TENSOR_ALIGNMENT,
        XNNHeader,
    )

    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    graph = decoded(blob, bits_schema())
    values = values_of(graph)
    shown: list[Shown] = []
    for node in graph["xnodes"]:
        if node["xnode_union_type"] not in PRODUCTS:
            continue
        tensor, scales = values[node["xnode_union"]["output_id"]]
        if tensor["flags"]:
            continue  # given already
        tensor["flags"], tensor["external_id"] = OUTPUT_FLAG, graph["num_externs"]
        graph["num_externs"] += 1
        graph["output_ids"].append(tensor["id_out"])
        scale = struct.unpack("<f", struct.pack("<I", scales["scale"]))[0] if scales else 1.0
        zero = scales.get("zero_point", 0)
        kind, filters = node["xnode_union_type"], node["xnode_union"].get("filter_id")
        weights = 0 if filters is None else math.prod(values[filters][0]["dims"])
        shown.append(Shown(kind, before + len(shown), weights, tensor, scale, zero))
    packed, aligned = binary(graph), CONSTANT_TENSOR_ALIGNMENT
    start = -(-XNNHeader.EXPECTED_LENGTH // aligned) * aligned
    constants = start + -(-len(packed) // aligned) * aligned
    rest = blob[header.constant_data_offset :][: header.constant_data_size]
    top = XNNHeader(start, len(packed), constants, len(rest)).to_bytes()
    return top.ljust(start, b"\0") + packed.ljust(constants - start, b"\0") + rest, shown


def bits_schema() -> bytes:
    """XNNPACK's schema with the bits of floats as integers: as text, floats would be rounded."""
    return re.sub(rb"\bfloat\b", b"uint", schema_of())


def binary(graph: Mapping[str, Any]) -> bytes:
    """The flatbuffer of a graph as JSON, its floats as their bits."""
    from executorch.exir._serialize._flatbuffer import _flatc_compile

    with temporary_folder("pte") as scratch:
        schema, given = scratch / SCHEMA, scratch / "graph.json"
        schema.write_bytes(bits_schema())
        given.write_text(json.dumps(graph), encoding="utf-8")
        _flatc_compile(str(scratch), str(schema), str(given))
        return (scratch / "graph.bin").read_bytes()
