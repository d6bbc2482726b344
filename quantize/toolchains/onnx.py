"""fp16, int8 and 4-bit ONNX, with onnxruntime's own converters and quantizers.

int8 is QDQ: per-channel int8 weights, per-tensor unsigned int8 activations. At 4 bits onnxruntime
has only `MatMulNBits`; weights of convolutions are 4-bit in the file alone.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper, version_converter
from torch import Tensor, nn

from pocketfocus.quantize.fake import TINY, best_scales, integers, scaled, symmetric
from pocketfocus.quantize.layers import LAYER_TYPES, Calls, layers_of
from pocketfocus.quantize.plan import Choice, plan
from pocketfocus.quantize.recipes import GROUP, Recipe, Scheme
from pocketfocus.run.scratch import temporary_folder

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
QUANTIZED = (*WEIGHTED, "Add")  # by onnxruntime's quantizer, where it is requested
ROUNDING = ("QuantizeLinear", "DequantizeLinear")
LAYER = "layer/"  # how the name of a layer's operator begins; its path in the network follows
TARGET = "onnx"
FLOAT_BYTES = 4  # of a weight that is not quantized
LEARNED = True
SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
BLOCKS = (16, 32, 64, 128, 256)  # that `MatMulNBits` takes
BLOCKED_OPSET = 21  # the first whose DequantizeLinear has 4-bit integers and blocks
NO_PALETTES = "ONNX has no palettes"
GROUPS_ONLY = "onnxruntime rounds to 4 bits in groups"
DYNAMIC_PRODUCTS = "MatMulNBits multiplies with activations quantized at run time"
FLOAT_CONVOLUTIONS = "onnxruntime has no 4-bit convolution: weights are unpacked to float32"
STATIC_ONLY = "8 bits are QDQ, whose ranges are fixed"
CHANNELS_ONLY = "QDQ weights are per-channel here"
INT4 = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4)
ENDS_4, ENDS_8 = (-8, 7), (-127, 127)  # of the integers
FOUR_BIT, INT8_ARITHMETIC = "MatMulNBits", 4  # its accuracy_level: activations to int8 at run time


def choose(requested: Scheme, layer: nn.Module) -> Choice:
    """What onnxruntime takes in place of a scheme: 4 bits in groups, 8 bits per-channel, beside
    activations that have static ranges or stay floats."""
    if requested.bits >= 16:
        return Choice(requested)
    why = [NO_PALETTES] if requested.form == "palette" else []
    granularity = GROUP if requested.form == "palette" else requested.granularity
    if requested.bits == 4:
        if not isinstance(granularity, int):
            why.append(GROUPS_ONLY)
            granularity = GROUP
        elif granularity not in BLOCKS:
            why.append(f"onnxruntime has groups of {', '.join(map(str, BLOCKS))}")
            granularity = GROUP
        activations = "dynamic" if isinstance(layer, nn.Linear) else "float"
        if activations != requested.activations:
            why.append(DYNAMIC_PRODUCTS if activations == "dynamic" else FLOAT_CONVOLUTIONS)
        return Choice(Scheme(4, "affine", granularity, activations), "; ".join(why))
    activations = "float" if requested.activations == "float" else "static"
    if activations != requested.activations:
        why.append(STATIC_ONLY)
    if granularity != "channel" and requested.form == "affine":
        why.append(CHANNELS_ONLY)
    return Choice(Scheme(8, "affine", "channel", activations), "; ".join(why))


def choices(recipe: Recipe, network: nn.Module) -> dict[str, Choice]:
    """What is requested of onnxruntime, layer by layer; UserError for patterns that fit none."""
    return plan(recipe, TARGET, network, choose)


def grid(rows: Tensor, scheme: Scheme) -> Tensor:
    """See `fake.Grid`: at 4 bits `MatMulNBits` has the largest weight at -8, whatever its sign,
    and convolutions, whose activations stay floats, the `best_scales`."""
    if scheme.bits == 8:
        return symmetric(rows, scheme)
    scales = range_scales(rows)
    if scheme.activations == "float":
        scales = best_scales(rows, scales, ENDS_4)
    return scaled(rows, scales, scheme)


def range_scales(rows: Tensor) -> Tensor:
    """The scale of each row whose largest weight is -8, whatever its sign."""
    low, high = rows.amin(1), rows.amax(1)
    return torch.where(high > -low, high, low) / ENDS_4[0]


def quantized(
    model: onnx.ModelProto, schemes: Mapping[str, Scheme], calls: Calls
) -> onnx.ModelProto:
    """A new model, its layers kept by these schemes; inputs and outputs stay float32."""
    if schemes and all(scheme.bits == 16 for scheme in schemes.values()):
        return half(model)
    four_bit = {name: s for name, s in schemes.items() if s.bits == 4}
    weights_alone = {n: s for n, s in schemes.items() if (s.bits, s.activations) == (8, "float")}
    eight_bit = {n: s for n, s in schemes.items() if (s.bits, s.activations) == (8, "static")}
    with temporary_folder("onnx") as scratch:
        if four_bit or weights_alone or eight_bit:
            model = prepare(model, scratch)
        if four_bit:
            model = four_bit_matmuls(raised(model), four_bit)
        model = integer_weights(model, {**four_bit, **weights_alone})
        if eight_bit:
            between = not four_bit
            model = static_int8(model, calls, scratch, eight_bit, between)
    return model


def layer_of_name(name: str) -> str:
    """The path of the layer that an operator's name holds; "" when it is none's."""
    return name.split("/")[1] if name.startswith(LAYER) else ""


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
    del converted.model.graph.value_info[:]  # still tells of float32, where the model has float16
    result: onnx.ModelProto = onnx.shape_inference.infer_shapes(converted.model)
    return result


def prepare(model: onnx.ModelProto, scratch: Path) -> onnx.ModelProto:
    """Infer shapes; onnxruntime's own optimizer stays off.

    It would turn MatMul into Gemm, which has no 4-bit form.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given, prepared = scratch / "given.onnx", scratch / "prepared.onnx"
    onnx.save(model, given)
    quant_pre_process(given, prepared, skip_symbolic_shape=True, skip_optimization=True)
    return onnx.load(prepared)


def raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at the first opset that has blocks of 4-bit integers, or its own if later."""
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if opset >= BLOCKED_OPSET:
        return model
    found: onnx.ModelProto = version_converter.convert_version(model, BLOCKED_OPSET)
    return found


def four_bit_matmuls(model: onnx.ModelProto, schemes: Mapping[str, Scheme]) -> onnx.ModelProto:
    """Symmetric 4-bit weights, one scale a group, for these layers' MatMuls by a constant."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    for group in sorted({int(scheme.granularity) for scheme in schemes.values()}):
        layers = {name for name, scheme in schemes.items() if scheme.granularity == group}
        others = [n.name for n in model.graph.node if layer_of_name(n.name) not in layers]
        quantizer = MatMulNBitsQuantizer(
            model,
            bits=4,
            block_size=group,
            is_symmetric=True,
            accuracy_level=INT8_ARITHMETIC,
            nodes_to_exclude=others,
        )
        quantizer.process()
        model = quantizer.model.model
    return model


def integer_weights(model: onnx.ModelProto, schemes: Mapping[str, Scheme]) -> onnx.ModelProto:
    """Symmetric weights for operators of these layers whose kernels take floats: of 4 bits with a
    scale a group of an output channel's, of 8 bits with one a channel.

    `DequantizeLinear` unpacks them at run time: smaller, not faster.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        scheme = schemes.get(layer_of_name(node.name))
        if scheme is not None and node.op_type in WEIGHTED and node.input[1] in weights:
            tensor = weights[node.input[1]]
            if scheme.bits == 4:
                made, constants = unpacking(node, tensor, int(scheme.granularity))
            else:
                made, constants = per_channel(node, tensor)
            node.input[1] = made[-1].output[0]
            nodes += made
            model.graph.initializer.extend(constants)
            model.graph.initializer.remove(tensor)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def unpacking(
    node: onnx.NodeProto, tensor: onnx.TensorProto, group: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The operators that give a layer's weight from 4-bit integers, and their constants."""
    weight = onnx.numpy_helper.to_array(tensor)
    turned = outputs_first(node)
    matrix = weight.reshape(weight.shape[0], -1)
    found, scales = in_groups(torch.tensor(matrix.T if turned else matrix), group)
    name = tensor.name
    constants = [
        onnx.numpy_helper.from_array(found.astype(INT4), f"{name}_int4"),
        onnx.numpy_helper.from_array(scales, f"{name}_scales"),
        onnx.numpy_helper.from_array(np.array(weight.shape, np.int64), f"{name}_shape"),
    ]
    unpacked, straight, shaped = f"{name}_unpacked", f"{name}_straight", f"{name}_shaped"
    made = [
        helper.make_node(
            "DequantizeLinear",
            [constants[0].name, constants[1].name],
            [unpacked],
            name=f"{unpacked}/op",
            axis=0,
            block_size=group,
        )
    ]
    if turned:
        made.append(
            helper.make_node(
                "Transpose", [unpacked], [straight], name=f"{straight}/op", perm=[1, 0]
            )
        )
    last = made[-1].output[0]
    shape = [last, constants[2].name]
    made.append(helper.make_node("Reshape", shape, [shaped], name=f"{shaped}/op"))
    return made, constants


def per_channel(
    node: onnx.NodeProto, tensor: onnx.TensorProto
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The operator that gives a layer's weight from 8-bit integers, one scale a channel of its
    output, and its constants."""
    axis = 0 if outputs_first(node) else 1
    weight = torch.tensor(onnx.numpy_helper.to_array(tensor)).movedim(axis, 0)
    rows = weight.flatten(1)
    scales = (rows.abs().amax(1) / ENDS_8[1]).clamp_min(TINY)
    numbers = integers(rows, scales, ENDS_8).reshape(weight.shape).movedim(0, axis).char()
    name = tensor.name
    constants = [
        onnx.numpy_helper.from_array(values.numpy(), f"{name}_{kind}")
        for kind, values in (
            ("int8", numbers.contiguous()),
            ("scales", scales),
            ("zeros", torch.zeros(len(scales), dtype=torch.int8)),
        )
    ]
    unpacked = f"{name}_unpacked"
    given = [constant.name for constant in constants]
    made = helper.make_node("DequantizeLinear", given, [unpacked], name=f"{unpacked}/op", axis=axis)
    return [made], constants


def outputs_first(node: onnx.NodeProto) -> bool:
    """Whether the first dimension of a layer's weight is that of its outputs; of a ConvTranspose it
    is that of its inputs."""
    flipped = any(entry.name == "transB" and entry.i for entry in node.attribute)
    return node.op_type == "Conv" or flipped


def in_groups(matrix: Tensor, group: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix [K, N] in 4-bit integers, and scales [K / group, N] of groups of K, the inputs of an
    output; the last group is one of what is left."""
    inputs, outputs = matrix.shape
    filled = F.pad(matrix.float(), (0, 0, 0, -inputs % group))
    rows = filled.reshape(-1, group, outputs).mT.reshape(-1, group)
    scales = best_scales(rows, range_scales(rows), ENDS_4)
    numbers = integers(rows, scales, ENDS_4)
    back = numbers.reshape(-1, outputs, group).mT.reshape(-1, outputs)
    return back[:inputs].numpy().astype(np.int8), scales.reshape(-1, outputs).numpy()


def leading_to_layers(model: onnx.ModelProto) -> set[str]:
    """The names of the operators that a layer follows, at any distance."""
    leading, read = set[str](), set[str]()  # the latter are the values that these and layers read
    for node in reversed(model.graph.node):  # in the order of computation, by the format's rules
        if not read.isdisjoint(node.output):
            leading.add(node.name)
        if node.name in leading or layer_of_name(node.name):
            read |= set(node.input)
    return leading


def left_alone(model: onnx.ModelProto, layers: Collection[str], between: bool) -> list[str]:
    """The names of the operators that stay in floating point.

    These are all but `layers` and, if `between`, the additions from one of these to a layer.
    """
    leading, names = leading_to_layers(model), []
    made: set[str] = set()  # values, by one of the layers and what follows it
    for node in model.graph.node:
        weighted = node.op_type in WEIGHTED
        follows = not made.isdisjoint(node.input)
        own = layer_of_name(node.name) in layers if weighted else follows
        made |= set(node.output) if own else set()
        if not (own if weighted else own and between and node.name in leading):
            names.append(node.name)
    return names


def static_int8(
    model: onnx.ModelProto,
    calls: Calls,
    scratch: Path,
    layers: Collection[str],
    between: bool,
) -> onnx.ModelProto:
    """QDQ around these layers and, if `between`, the additions that lead to one.

    Their ranges come from the calls; what follows the last layer stays.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    written, alone = scratch / "int8.onnx", left_alone(model, layers, between)
    quantize_static(
        model,
        written,
        reader([value.name for value in model.graph.input], calls),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*QUANTIZED],
        nodes_to_exclude=alone,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"QuantizeBias": False},
    )
    found = onnx.load(written)
    unrounded(
        found,
        {n.output[0] for n in model.graph.node if n.op_type in QUANTIZED and n.name not in alone},
        layers,
    )
    return found


def unrounded(model: onnx.ModelProto, integers: Collection[str], layers: Collection[str]) -> None:
    """Let layers but these, and operators that no layer follows, read float32 values as they are,
    in place.

    onnxruntime's quantizer rounds a value for all of its readers: for the layer that takes it as
    int8, and for what composes the stack of it, which then would show no photo but its rounding to
    the range of the calibration photos. `integers` are values that int8 operators make: of these
    there is nothing else.
    """
    makers = {value: node for node in model.graph.node for value in node.output}
    leading = leading_to_layers(model)
    for node in model.graph.node:
        layer = layer_of_name(node.name)
        rounded = layer in layers if layer else node.name in leading
        if rounded or node.op_type in ROUNDING:
            continue
        for place, value in enumerate(node.input):
            unpacked = makers.get(value)
            packed = makers.get(unpacked.input[0]) if unpacked is not None else None
            if (
                (unpacked is not None and unpacked.op_type == "DequantizeLinear")
                and (packed is not None and packed.op_type == "QuantizeLinear")
                and packed.input[0] not in integers
            ):
                node.input[place] = packed.input[0]


def reader(names: Collection[str], calls: Calls) -> Any:
    """The calls of a model with these inputs as onnxruntime reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
            self.feeds = feeds

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    arrays = (map(Tensor.numpy, call) for call in calls)
    return Reader(dict(zip(names, call, strict=True)) for call in arrays)
