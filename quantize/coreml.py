"""int8 and 4-bit Core ML. Palettes and weights by coremltools, activation ranges by torchao.

coremltools' own activation quantizer has to predict, which needs macOS. The other documented way
works anywhere: `ct.convert` of a graph quantized by torchao's PT2E becomes Core ML's own
`quantize` / `dequantize`, with int8 weights in the file.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.export import ExportedProgram

from pocketfocus.quantize.executorch import Inputs, capture, static_int8
from pocketfocus.quantize.recipes import Recipe

PALETTE_GROUP = 8  # output channels that share one 16-entry palette
SMALLEST_WEIGHT = 512  # elements; fewer are not worth a palette
GROUPED_PALETTES_IOS = 18


def program(student: nn.Module, recipe: Recipe, inputs: Inputs) -> ExportedProgram:
    """What ct.convert takes: the captured graph, with int8 already in it at 8 bits."""
    captured = capture(student, inputs)
    if recipe.weight_bits == 8:
        captured = capture(static_int8(captured, inputs, only_convolutions=False), inputs)
    decomposed: ExportedProgram = captured.run_decompositions({})
    return decomposed


def compressed(model: Any, recipe: Recipe) -> Any:
    """The model with 4-bit weights in the recipe's form, as far as its iOS reads it.

    Palettes by k-means: one for every `PALETTE_GROUP` channels of a weight, or, as iOS 17 has no
    others, one a weight. Blocks: symmetric integers, one scale for every `group_size` weights.
    """
    from coremltools.optimize.coreml import (
        OpLinearQuantizerConfig,
        OpPalettizerConfig,
        OptimizationConfig,
        linear_quantize_weights,
        palettize_weights,
    )

    if recipe.form == "blocks":
        blocks = OpLinearQuantizerConfig(
            mode="linear_symmetric",
            dtype="int4",
            granularity="per_block",
            block_size=recipe.group_size,
            weight_threshold=SMALLEST_WEIGHT,
        )
        return linear_quantize_weights(model, OptimizationConfig(global_config=blocks))
    grouped = recipe.ios >= GROUPED_PALETTES_IOS
    palettes = OpPalettizerConfig(
        mode="kmeans",
        nbits=4,
        granularity="per_grouped_channel" if grouped else "per_tensor",
        group_size=PALETTE_GROUP,
        weight_threshold=SMALLEST_WEIGHT,
    )
    return palettize_weights(model, OptimizationConfig(global_config=palettes))
