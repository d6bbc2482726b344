"""The weights of a Core AI asset, as the types in its saved program tell them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketfocus.export.coreml.read import palette, shared
from pocketfocus.export.quiet import quiet
from pocketfocus.export.targets import Sizes
from pocketfocus.quantize.recipes import Scheme

MAIN = "main"  # an asset's one function
PROGRAM, HASH = "main.mlirb", "main.hash"  # files of an asset
CONSTANT = "coreai.constant"
CONVOLUTION = "coreai.conv2d"
TRANSPOSED = "coreai.conv_transpose2d"
WEIGHTED = (
    CONVOLUTION,
    TRANSPOSED,
    "coreai.decomposable.broadcasting_batch_matmul",
)
TRANSPOSE = "coreai.transpose"
MOVES = (TRANSPOSE, "coreai.reshape", "coreai.pad", "coreai.slice", "coreai.cast")
FLOAT_BITS = {"f32": 32, "f16": 16}


def schemes(path: Path) -> list[tuple[Scheme, int]]:
    """The scheme and the count of weights of every convolution and product by a constant, in the
    order of execution.

    RuntimeError for a form of weights that is not known here.
    """
    asset = Asset(path)
    return [
        (scheme_of(op), math.prod(shape_of(op.operands[1])))
        for op in asset.operators()
        if op.name in WEIGHTED and is_constant(op.operands[1])
    ]


def palette_strides(path: Path) -> list[int]:
    """The larger stride of every convolution whose weights are a palette."""
    return [
        max(map(int, op.operands[2].owner.attributes["value"]))
        for op in Asset(path).operators()
        if op.name == CONVOLUTION and scheme_of(op).form == "palette"
    ]


def facts(path: Path) -> dict[str, Any]:
    """What is in a file: its operators, and how many numbers are kept in which type."""
    asset = Asset(path)
    counts = Counter(str(op.name) for op in asset.operators() if op.name != CONSTANT)
    return {
        "operators": dict(sorted(counts.items())),
        "numbers": dict(sorted(asset.file.summary().storage_types)),
    }


def names(path: Path) -> tuple[list[str], list[str]]:
    """The names of a file's inputs and outputs, in order."""
    summary = Asset(path).file.summary()
    return (
        [str(name) for name, _ in summary.function_inputs(MAIN)],
        [str(name) for name, _ in summary.function_outputs(MAIN)],
    )


def sizes(path: Path) -> Sizes:
    """See `Target.sizes`."""
    photo, *_ = input_shapes(path)
    return Sizes(((photo[-2], photo[-1]),))


def input_shapes(path: Path) -> list[tuple[int, ...]]:
    """The shapes of a file's inputs, in order."""
    asset = Asset(path)
    main = next(graph for graph in asset.graphs() if graph.attributes["sym_name"].value == MAIN)
    return [shape_of(value) for value in main.regions[0].blocks[0].arguments]


class Asset:
    """An asset, open: its program has to be kept while operators of it are looked at.

    ValueError for a damaged one, by the hash that it carries: coreai-core would crash on it.
    """

    def __init__(self, path: Path) -> None:
        from coreai.authoring import AIModelAsset

        content, stated = ((path / name).read_bytes() for name in (PROGRAM, HASH))
        if hashlib.sha256(content).digest() != stated:
            raise ValueError(f"{PROGRAM} does not have the hash of {HASH}")
        with quiet():
            self.file = AIModelAsset.load(path)
            self.program = self.file.program

    def graphs(self) -> Iterator[Any]:
        """The graphs of the program: that of its function, and those which it calls."""
        yield from self.program._module._mlir_module.body.operations

    def operators(self) -> Iterator[Any]:
        for graph in self.graphs():
            for op in graph.regions[0].blocks[0].operations:
                yield op.operation


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a value."""
    return tuple(value.type.shape)


def scheme_of(op: Any) -> Scheme:
    """How an operator's weight is kept, and whether its input was quantized."""
    weight = made_by(op.operands[1], (TRANSPOSE,))
    kind = weight.name if weight is not None else "an input"
    if kind == CONSTANT:
        return Scheme(FLOAT_BITS[str(weight.results[0].type.element_type)])
    before = made_by(op.operands[0], MOVES)
    activations = "static" if before is not None and before.name == "coreai.dequantize" else "float"
    if kind == "coreai.blockwise_shift_scale":
        integers, scales = (shape_of(value) for value in list(weight.operands)[:2])
        bits = int(weight.operands[0].type.element_type.width)
        channel = int(op.name == TRANSPOSED)
        return Scheme(bits, "affine", shared(scales, integers, channel), activations)
    if kind == "coreai.lut_to_dense":
        indices, lists = (shape_of(value) for value in list(weight.operands)[:2])
        return palette(lists, indices[0], activations)
    raise RuntimeError(f"weights by {kind} are not known")


def is_constant(value: Any) -> bool:
    """Whether a value is made of constants alone, so that a product by it is one by weights."""
    from coreai._compiler.ir import Operation

    owner = value.owner
    return isinstance(owner, Operation) and all(map(is_constant, owner.operands))


def made_by(value: Any, moves: tuple[str, ...]) -> Any:
    """The operator that a value comes from, moved about at most; None for an input of its graph."""
    from coreai._compiler.ir import Operation

    owner = value.owner
    while isinstance(owner, Operation) and owner.name in moves:
        owner = owner.operands[0].owner
    return owner if isinstance(owner, Operation) else None
