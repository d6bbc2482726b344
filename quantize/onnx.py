"""fp16, int8 and 4-bit ONNX, with onnxruntime's own converters and quantizers.

int8 is QDQ: int8 weights, one scale a channel, unsigned int8 activations, one scale a tensor. At
4 bits onnxruntime has only `MatMulNBits`, so convolutions stay at int8.
"""

from __future__ import annotations

import ast
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from pocketfocus.quantize.calibration import Calibration
from pocketfocus.quantize.layers import LAYER_TYPES, layers_of
from pocketfocus.quantize.recipes import Recipe

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
QUANTIZED = (*WEIGHTED, "Add")
LAYER = "layer/"  # how the name of a layer's operator begins; its path in the network follows
SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
INT8_ARITHMETIC = 4  # MatMulNBits' accuracy_level: activations to int8 at run time


def quantized(model: onnx.ModelProto, recipe: Recipe, inputs: Calibration) -> onnx.ModelProto:
    """A new model at the recipe's precision; inputs and outputs stay float32."""
    if recipe.weight_bits == 16:
        return half(model)
    if not recipe.calibrated:
        return model
    four_bit = recipe.weight_bits == 4
    with tempfile.TemporaryDirectory(prefix="pocketfocus-onnx-") as scratch:
        prepared = prepare(model, Path(scratch))
        if four_bit:
            prepared = four_bit_matmuls(prepared, recipe.group_size)
        return static_int8(prepared, inputs, Path(scratch))


def name_layers(model: onnx.ModelProto, network: nn.Module) -> None:
    """Rename every layer's operator, in place, to `layer/PATH/OPERATOR`, which toolchains keep.

    RuntimeError when PyTorch's exporter left a layer of the network without a trace.
    """
    missing = set(layers_of(network))
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        if node.op_type not in WEIGHTED or SCOPES not in notes:
            continue
        *_, path, _ = ast.literal_eval(notes[SCOPES])  # the last one is the operator's own
        *_, kind, _ = ast.literal_eval(notes[CLASSES])
        if kind in LAYER_TYPES:
            node.name = f"{LAYER}{path}/{node.op_type}"
            missing.discard(path)
    if missing:
        raise RuntimeError(f"the ONNX graph has no operator for the layers {sorted(missing)}")


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """All weights and arithmetic in float16, between casts at inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = OnnxModel(convert_float_to_float16(copy.deepcopy(model), keep_io_types=True))
    converted.topological_sort()  # the casts of the inputs come last
    result: onnx.ModelProto = converted.model
    return result


def prepare(model: onnx.ModelProto, scratch: Path) -> onnx.ModelProto:
    """Infer shapes; onnxruntime's own optimizer stays off.

    It would turn MatMul into Gemm, which has no 4-bit form, and take HardSwish apart.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given, prepared = scratch / "given.onnx", scratch / "prepared.onnx"
    onnx.save(model, given)
    quant_pre_process(given, prepared, skip_symbolic_shape=True, skip_optimization=True)
    return onnx.load(prepared)


def four_bit_matmuls(model: onnx.ModelProto, group_size: int) -> onnx.ModelProto:
    """Symmetric 4-bit weights, one scale a group, for every MatMul by a constant."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        model, bits=4, block_size=group_size, is_symmetric=True, accuracy_level=INT8_ARITHMETIC
    )
    quantizer.process()
    result: onnx.ModelProto = quantizer.model.model
    return result


def composing(model: onnx.ModelProto) -> list[str]:
    """The names of the operators that no layer follows, and of convolutions that are no layers."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    leading: set[str] = set()
    names = []
    for node in reversed(model.graph.node):  # in the order of computation, by the format's rules
        users = [user for value in node.output for user in readers.get(value, ())]
        if any(user.name in leading or user.name.startswith(LAYER) for user in users):
            leading.add(node.name)
        layer = node.name.startswith(LAYER)
        if not layer and (node.op_type in WEIGHTED or node.name not in leading):
            names.append(node.name)
    return names


def static_int8(model: onnx.ModelProto, inputs: Calibration, scratch: Path) -> onnx.ModelProto:
    """QDQ around layers and additions between them that are left in floating point.

    Their ranges come from the calibration inputs; what follows the last layer stays.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    written = scratch / "int8.onnx"
    quantize_static(
        model,
        written,
        reader(inputs),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTIZED),
        nodes_to_exclude=composing(model),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(written)


def reader(inputs: Calibration) -> Any:
    """The calibration inputs as onnxruntime reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
            self.feeds = feeds

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    return Reader({"photo": a.numpy(), "position": b.numpy()} for a, b in inputs)
