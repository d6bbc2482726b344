"""The weights of a Core ML package, as its program, loaded back into MIL, holds them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pocketfocus.export.coreml.mil.program import MAIN, load_pymil, pymil_of
from pocketfocus.quantize.recipes import Granularity, Scheme

WEIGHTED = ("conv", "conv_transpose", "linear")
MOVES = ("transpose", "reshape", "expand_dims", "squeeze", "cast")  # keep values and their scale
FLOAT_BITS = {"float32": 32, "float16": 16}


def schemes(path: Path) -> list[tuple[Scheme, int]]:
    """The scheme and the count of weights of every convolution and product by a constant, in the
    order of execution.

    RuntimeError for a form of weights that is not known here.
    """
    return [(scheme_of(op), count(op)) for op in weighted(load_pymil(path))]


def weight_names(model: Any) -> list[tuple[str, int]]:
    """By which coremltools knows the weights of those operators in a model in memory, and their
    counts of weights."""
    return [(str(op.weight.op.name), count(op)) for op in weighted(pymil_of(model))]


def count(op: Any) -> int:
    """How many weights an operator has."""
    return math.prod(op.weight.shape)


def weighted(program: Any) -> list[Any]:
    """The operators that multiply by a weight, in order."""
    return [op for op in program.functions[MAIN].operations if op.op_type in WEIGHTED]


def scheme_of(op: Any) -> Scheme:
    """How an operator's weight is kept, and whether its input was quantized."""
    from coremltools.converters.mil.mil import types

    weight = op.weight.op
    if weight.op_type == "const":
        return Scheme(FLOAT_BITS[str(op.weight.val.dtype)])
    activations = "static" if quantized(op.x) else "float"
    channel = 1 if op.op_type == "conv_transpose" else 0
    if weight.op_type == "constexpr_lut_to_dense":
        values = weight.lut.val  # of iOS 17 one list, of iOS 18 one for every group
        lists = values.shape if values.ndim > 1 else (values.size, 1)
        return palette(lists, op.weight.shape[channel], activations)
    if weight.op_type == "constexpr_blockwise_shift_scale":
        bits = 4 if types.builtin_to_string(weight.data.dtype).endswith("int4") else 8
        group = shared(tuple(weight.scale.shape), tuple(weight.data.shape), channel)
        return Scheme(bits, "affine", group, activations)
    if weight.op_type == "constexpr_affine_dequantize":  # of iOS 17
        scales = weight.scale.val
        return Scheme(8, "affine", "channel" if scales.ndim else "tensor", activations)
    raise RuntimeError(f"weights by {weight.op_type} are not known")


def palette(lists: tuple[int, ...], outputs: int, activations: str) -> Scheme:
    """The scheme of a weight whose values are in `lists` of this shape, the last but one dimension
    that of a list, one for every group of outputs."""
    bits, palettes = round(math.log2(lists[-2])), math.prod(lists[:-2])
    group: Granularity = "tensor" if palettes == 1 else outputs // palettes
    return Scheme(bits, "palette", "channel" if group == 1 else group, activations)


def shared(scales: tuple[int, ...], shape: tuple[int, ...], channel: int) -> Granularity:
    """What shares a scale: `scales` are of the weight's rank, each size 1 or a count of blocks, and
    `channel` is the axis of output channels."""
    if math.prod(scales) == 1:
        return "tensor"
    blocks = [size // count for size, count in zip(shape, scales, strict=True)]
    if math.prod(scales) == scales[channel]:
        return "channel" if blocks[channel] == 1 else blocks[channel]
    return math.prod(blocks)


def quantized(value: Any) -> bool:
    """Whether a value comes from `dequantize`, moved about at most."""
    op = value.op
    while op is not None and op.op_type in MOVES:
        op = op.x.op
    return op is not None and op.op_type == "dequantize"
