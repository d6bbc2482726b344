"""What may go badly with a Core AI asset, as the types in its saved program say."""

from __future__ import annotations

from pathlib import Path

from pocketfocus.export.coreai.read import schemes
from pocketfocus.export.coreml.lint import in_blocks
from pocketfocus.export.targets import Advice


def lint(path: Path) -> list[Advice]:
    """See `Target.lint`."""
    blocks = [
        scheme
        for scheme, _ in schemes(path)
        if scheme.form == "affine" and isinstance(scheme.granularity, int)
    ]
    return in_blocks(len(blocks), "call it on the GPU, take palettes, which were right (a recipe)")
