"""int8 and 4-bit Core ML. Palettes and weights by coremltools, activation ranges by torchao.

coremltools' own activation quantizer has to predict, which needs macOS. The other documented way
works anywhere: `ct.convert` of a graph quantized by torchao's PT2E becomes Core ML's own
`quantize` / `dequantize`, with int8 weights in the file.
"""

from __future__ import annotations

from typing import Any

from torch.export import ExportedProgram

from pocketfocus.quantize.calibration import Calibration
from pocketfocus.quantize.executorch import capture, static_int8
from pocketfocus.quantize.recipes import Recipe
from pocketfocus.student import RefocusStudent

PALETTE_GROUP = 8  # output channels that share one 16-entry palette
SMALLEST_WEIGHT = 512  # elements; fewer are not worth a palette


def program(student: RefocusStudent, recipe: Recipe, inputs: Calibration) -> ExportedProgram:
    """What ct.convert takes: the captured graph, with int8 already in it at 8 bits."""
    captured = capture(student, inputs)
    if recipe.weight_bits == 8:
        captured = capture(static_int8(captured, inputs, only_convolutions=False), inputs)
    decomposed: ExportedProgram = captured.run_decompositions({})
    return decomposed


def palettized(model: Any) -> Any:
    """16-entry palettes by k-means, one for every `PALETTE_GROUP` channels of each weight."""
    from coremltools.optimize.coreml import (
        OpPalettizerConfig,
        OptimizationConfig,
        palettize_weights,
    )

    config = OpPalettizerConfig(
        mode="kmeans",
        nbits=4,
        granularity="per_grouped_channel",
        group_size=PALETTE_GROUP,
        weight_threshold=SMALLEST_WEIGHT,
    )
    return palettize_weights(model, OptimizationConfig(global_config=config))
