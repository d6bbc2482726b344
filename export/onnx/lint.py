"""What may go badly with an ONNX graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx

from pocketfocus.export.onnx.write import parsed
from pocketfocus.export.targets import Advice

OPERATORS = "https://onnx.ai/onnx/operators"
ISSUES = "https://github.com/microsoft/onnxruntime/issues"
FUSED_SINCE = 17  # the opset with LayerNormalization
FLOAT16 = onnx.TensorProto.FLOAT16
STANDARD = ("", "ai.onnx")


def lint(path: Path) -> list[Advice]:
    """See `Target.lint`."""
    model = parsed(path)
    return [*_paddings(model), *_norms(model), *_foreign(model)]


def _paddings(model: onnx.ModelProto) -> Iterator[Advice]:
    found = [
        node.name or node.op_type
        for node in model.graph.node
        for given in node.attribute
        if given.name == "auto_pad" and given.s not in (b"", b"NOTSET", b"VALID")
    ]
    if found:
        yield Advice(
            "padding-same", "warning", f"{len(found)} operators, the first {found[0]}",
            "auto_pad leaves it to each runtime where the odd pixel of a padding goes",
            "give convolutions a symmetric padding in numbers", f"{OPERATORS}/onnx__Conv.html",
        )  # fmt: skip


def _norms(model: onnx.ModelProto) -> Iterator[Advice]:
    """Say when squares of a taken-apart normalization are made in float16."""
    opset = max(each.version for each in model.opset_import if each.domain in STANDARD)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    squares = [
        node
        for node in model.graph.node
        if node.op_type == "Pow" and types.get(node.output[0]) == FLOAT16
    ]
    if squares and opset < FUSED_SINCE:
        yield Advice(
            "norms-in-float16", "warning", f"{len(squares)} Pow, opset {opset}",
            "WebGPU fuses no normalization below opset 17, and its squares overflow float16",
            "export with opset 17 or later", f"{ISSUES}/31626",
        )  # fmt: skip


def _foreign(model: onnx.ModelProto) -> Iterator[Advice]:
    names = Counter(
        f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in STANDARD
    )
    if names:
        listed = ", ".join(f"{count} {name}" for name, count in names.most_common())
        yield Advice(
            "not-standard", "note", listed,
            "these operators are onnxruntime's own: no other runtime takes the file",
            "take the int8 or fp16 file for other runtimes",
            "https://onnxruntime.ai/docs/reference/operators/ContribOperators.html",
        )  # fmt: skip
