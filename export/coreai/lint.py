"""What may go badly with a Core AI asset, as the types in its saved program say."""

from __future__ import annotations

from pathlib import Path

from pocketfocus.export.coreai.read import schemes
from pocketfocus.export.targets import Advice


def lint(path: Path) -> list[Advice]:
    """See `Target.lint`."""
    blocks = [
        scheme
        for scheme, _ in schemes(path)
        if scheme.form == "affine" and isinstance(scheme.granularity, int)
    ]
    if not blocks:
        return []
    return [
        Advice(
            "integers-in-blocks", "warning", f"{len(blocks)} weights",
            "integer weights with a scale a block gave other values on the Neural Engine of an "
            "iPhone 16 Pro, and the right ones on its GPU; palettes were right on both",
            "call it on the GPU, take palettes (a recipe), or try a canary on each device",
            "https://github.com/apple/coreai-models/issues/279",
        )
    ]  # fmt: skip
