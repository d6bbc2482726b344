"""What may go badly with a Core AI asset, as the types in its saved program say."""

from __future__ import annotations

from pathlib import Path

from pocketfocus.export.coreai.read import palette_strides, schemes
from pocketfocus.export.coreml.lint import MOST_STRIDE, in_blocks, strided_palettes
from pocketfocus.export.targets import Advice


def lint(path: Path) -> list[Advice]:
    """See `Target.lint`."""
    blocks = [
        scheme
        for scheme, _ in schemes(path)
        if scheme.form == "affine" and isinstance(scheme.granularity, int)
    ]
    remedy = "call it on the GPU, take palettes, which were right (a recipe)"
    large = sum(stride > MOST_STRIDE for stride in palette_strides(path))
    return [*in_blocks(len(blocks), remedy), *strided_palettes(large)]
