"""What may go badly with a Core ML package, as its program, loaded back into MIL, says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pocketfocus.export.coreml.mil.program import MAIN, load_pymil
from pocketfocus.export.targets import Advice
from pocketfocus.run.errors import UserError

PALETTE, SCALED = "constexpr_lut_to_dense", "constexpr_blockwise_shift_scale"
FOUR_BITS = 16  # values of a palette
MOST_STRIDE = 2  # of a convolution whose weights are a palette, on the Neural Engine
MOST_RANK = 5
COREMLTOOLS = "https://github.com/apple/coremltools"
NEURAL_ENGINE = (
    "https://github.com/apple/coreai-models/blob/main/skills/skills/model-authoring/references/"
    "neural_engine_rules.md"
)
SHAPES = "https://apple.github.io/coremltools/docs-guides/source/flexible-inputs.html"


def lint(path: Path) -> list[Advice]:
    """See `Target.lint`."""
    program = load_pymil(path)
    if MAIN not in program.functions:
        raise UserError(f"{path} has no function {MAIN}, but {', '.join(program.functions)}")
    operations = list(program.functions[MAIN].operations)
    return [
        *_palettes(operations),
        *strided_palettes(sum(map(_is_strided_palette, operations))),
        *_blocks(operations),
        *_shapes(program.functions[MAIN]),
        *_attention(operations),
    ]


def _palettes(operations: Sequence[Any]) -> Iterator[Advice]:
    palettes = [op for op in operations if op.op_type == PALETTE]
    four_bit = [op for op in palettes if op.lut.val is not None and FOUR_BITS in op.lut.shape[-2:]]
    if four_bit:
        yield Advice(
            "palettes-of-4-bits", "warning", f"{len(four_bit)} weights",
            "palettes of 16 values were wrong or crashed on the Neural Engine of Macs with an M4; "
            "not proven on Apple hardware",
            "export with --four-bit blocks, ship int8, or try a canary on each device",
            f"{COREMLTOOLS}/issues/2716",
        )  # fmt: skip
    scaled = [op for op in operations if op.op_type == SCALED and _is_float(op.data)]
    if scaled:
        yield Advice(
            "scaled-palettes", "error", f"{len(scaled)} weights",
            "palettes with a scale beside them do not load on the Neural Engine (macOS 26)",
            "leave enable_per_channel_scale off", f"{COREMLTOOLS}/pull/2688",
        )  # fmt: skip


def _is_strided_palette(op: Any) -> bool:
    if op.op_type != "conv" or max(op.strides.val) <= MOST_STRIDE:
        return False
    made = op.weight.op
    while made is not None and made.op_type == SCALED:
        made = made.data.op
    return made is not None and made.op_type == PALETTE


def strided_palettes(count: int) -> list[Advice]:
    """What is said of so many convolutions with palettes and large strides, in packages and Core AI
    assets."""
    if not count:
        return []
    return [
        Advice(
            "strided-palettes", "warning", f"{count} convolution{'s' * (count != 1)}",
            f"palettes in convolutions of strides above {MOST_STRIDE}, which the Neural Engine "
            "hardly takes, as Apple says: they may run elsewhere",
            "keep these weights float16 or int8 (a recipe), or stay with --four-bit blocks",
            NEURAL_ENGINE,
        )
    ]  # fmt: skip


def _blocks(operations: Sequence[Any]) -> list[Advice]:
    blocks = [
        op
        for op in operations
        if op.op_type == SCALED
        and not _is_float(op.data)
        and sum(side > 1 for side in op.scale.shape) > 1
    ]
    return in_blocks(len(blocks), "call them with the compute units CPU and GPU")


def in_blocks(count: int, remedy: str) -> list[Advice]:
    """What is said of so many weights with a scale a block, in packages and Core AI assets."""
    if not count:
        return []
    return [
        Advice(
            "integers-in-blocks", "warning", f"{count} weights",
            "integer weights with a scale a block gave other values on the Neural Engine of an "
            "iPhone 16 Pro, in a Core AI file, and the right ones on its GPU",
            f"{remedy}, or try a canary on each device",
            "https://github.com/apple/coreai-models/issues/279",
        )
    ]  # fmt: skip


def _shapes(function: Any) -> Iterator[Advice]:
    shapes = {name: var.shape for name, var in function.inputs.items()}
    free = [name for name, shape in shapes.items() if not all(str(n).isdigit() for n in shape)]
    if free:
        yield Advice(
            "free-sizes", "warning", ", ".join(free),
            "inputs of any size keep a program off the Neural Engine",
            "write a function for each size, as export --sizes does", SHAPES,
        )  # fmt: skip
    ranks = Counter(
        op.op_type for op in function.operations for var in op.outputs if var.rank > MOST_RANK
    )
    constant = {name for name in ranks if name == "const" or name.startswith("constexpr")}
    if ranks.keys() - constant:
        names = ", ".join(sorted(ranks.keys() - constant))
        yield Advice(
            "rank-above-5", "error", names, "Core ML takes values of five dimensions at most",
            "fold dimensions of the network before it is exported",
            f"{COREMLTOOLS}/issues/1723",
        )  # fmt: skip


def _attention(operations: Sequence[Any]) -> Iterator[Advice]:
    softmaxes = {op.outputs[0] for op in operations if op.op_type == "softmax"}
    found = [
        op
        for op in operations
        if op.op_type == "matmul" and op.x in softmaxes and op.x.rank == len("BNN")
    ]
    if found:
        yield Advice(
            "attention-of-rank-3", "note", f"{len(found)} products",
            "attention with its heads in the batch was computed wrongly by LiteRT's GPU delegate",
            "when the network goes to LiteRT too, keep heads in a dimension of their own",
            "https://github.com/google-ai-edge/LiteRT/issues/8619",
        )  # fmt: skip


def _is_float(var: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return bool(types.is_float(var.dtype))
