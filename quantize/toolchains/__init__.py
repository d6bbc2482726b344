"""A module a toolchain: what it takes of a recipe, and where it puts weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast

from torch import nn

from pocketfocus.quantize.fake import Grid
from pocketfocus.quantize.plan import Choice
from pocketfocus.quantize.recipes import TOOLCHAIN_NAMES, Recipe


class Toolchain(Protocol):
    """What a module says of its toolchain.

    Attributes:
        FLOAT_BYTES: of a weight that is not quantized.
        LEARNED: whether quantization-aware distillation learns through its grid.
    """

    FLOAT_BYTES: int
    LEARNED: bool

    @property
    def choices(self) -> Callable[[Recipe, nn.Module], dict[str, Choice]]:
        """What it takes of a recipe, layer by layer; UserError for patterns that fit none."""

    @property
    def grid(self) -> Grid:
        """Where it puts weights."""


TOOLCHAINS = {
    name: cast(Toolchain, import_module(f"{__name__}.{name}")) for name in TOOLCHAIN_NAMES
}
