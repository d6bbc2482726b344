"""Quantization-aware distillation: a student learns through the rounding of a recipe's files.

In every call weights are rounded as the targets' files have them and activations nearly so (static
ones over minima and maxima, where XNNPACK and Core ML take ranges by histograms); the gradient
passes straight through (LLM-QAT, arXiv 2305.17888). What is learned, and saved, is an ordinary
student: quantizing it afterwards loses less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pocketfocus.quantize.calibration import Calibration
from pocketfocus.quantize.fake import Rounded, observe
from pocketfocus.quantize.recipes import Recipe, Scheme
from pocketfocus.quantize.toolchains import TOOLCHAINS
from pocketfocus.run.errors import UserError


def schemes_of(recipe: Recipe, network: nn.Module) -> dict[str, dict[str, Scheme]]:
    """Find the integers that every target applies of a recipe: by target, and by layer's path.

    Palettes, which are found by k-means, do not count. UserError when no layer is rounded.
    """
    found = {}
    for name, toolchain in TOOLCHAINS.items():
        if not toolchain.LEARNED:
            continue
        applied = {layer: c.scheme for layer, c in toolchain.choices(recipe, network).items()}
        integers = {n: s for n, s in applied.items() if s.bits < 16 and s.form == "affine"}
        if integers:
            found[name] = integers
    if not found:
        raise UserError(
            f"the recipe {recipe.name} rounds no layer to integers, so there is nothing to learn: "
            "choose int8, int4 or a .yaml file"
        )
    return found


@dataclass(frozen=True)
class Files:
    """A student as the files of several targets compute it, every photo as one of them does."""

    files: tuple[Callable[[Tensor, Tensor], Any], ...]

    def __call__(self, photo: Tensor, position: Tensor, turn: Tensor) -> tuple[Tensor, ...]:
        """Turn photos [B,3,H,W] in [-1,1] and positions [B,9] into what the student gives; `turn`
        [B] is the number of each photo's file."""
        parts = [(turn == index).nonzero().flatten() for index in range(len(self.files))]
        made = [
            [x.reshape(len(part), -1, *x.shape[1:]) for x in file(photo[part], position[part])]
            for file, part in zip(self.files, parts, strict=True)
            if len(part)
        ]
        order = torch.cat(parts).argsort()
        return tuple(torch.cat(x)[order].flatten(0, 1) for x in zip(*made, strict=True))


def rounded(student: nn.Module, recipe: Recipe, inputs: Calibration) -> Files:
    """Return a student through a recipe's files; ranges are those of the calibration inputs before
    it learns. UserError when no target rounds a layer to integers."""
    schemes = schemes_of(recipe, student)
    fixed = any(s.activations == "static" for table in schemes.values() for s in table.values())
    ranges = observe(student, inputs) if fixed else {}
    return Files(
        tuple(
            Rounded(student, table, ranges, TOOLCHAINS[target].grid)
            for target, table in schemes.items()
        )
    )
