"""The registry of toolchains: what each takes of a recipe, and where it puts weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import nn

from pocketfocus.quantize import coreml, executorch, onnx
from pocketfocus.quantize.fake import Grid
from pocketfocus.quantize.plan import Choice
from pocketfocus.quantize.recipes import Recipe


class Toolchain(Protocol):
    """What a target's module says of its toolchain."""

    @property
    def choices(self) -> Callable[[Recipe, nn.Module], dict[str, Choice]]:
        """What it takes of a recipe, layer by layer; UserError for patterns that fit none."""

    @property
    def grid(self) -> Grid:
        """Where it puts weights."""


TOOLCHAINS: dict[str, Toolchain] = {"executorch": executorch, "coreml": coreml, "onnx": onnx}
