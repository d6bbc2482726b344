"""Core ML packages: the MIL check executes the program, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pocketfocus.export.coreml.mil.program import load_program
from pocketfocus.export.targets import Layer

WEIGHTED = ("conv", "conv_transpose", "linear", "matmul")


def layers(path: Path, feeds: Mapping[str, Tensor]) -> tuple[list[Layer], Tensor]:
    """See `Target.layers`."""
    found: list[Layer] = []

    def watch(name: str, kind: str, value: Tensor) -> None:
        if kind in WEIGHTED:
            found.append(Layer("", f"{kind} {name}", value.float()))

    stack, *_ = load_program(path)(feeds, watch=watch).values()
    return found, stack
