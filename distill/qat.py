"""Quantization-aware distillation: a student learns through the rounding of a recipe.

Weights and activations are rounded in every call, as the files of the recipe have them, and the
gradient passes straight through (Bengio et al., arXiv 1308.3432; LLM-QAT, arXiv 2305.17888). The
rounding of weights, and of activations at run time, is torchao's, that of its own exporters. What
is learned, and saved, is an ordinary student: quantizing it afterwards loses less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pocketfocus.errors import UserError
from pocketfocus.quantize.calibration import Calibration
from pocketfocus.quantize.fake import Ranges, by_pixel, grouped, observe, static
from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import Recipe, Scheme
from pocketfocus.quantize.sensitivity import CHOICES


def schemes_of(recipe: Recipe, network: nn.Module) -> dict[str, Scheme]:
    """The coarsest integers that any target takes of a recipe, for every layer that has some.

    Palettes, which are found by k-means, do not count. UserError when no layer is rounded.
    """
    tables = [choices(recipe, network) for choices in CHOICES.values()]
    found = {}
    for name in layers_of(network):
        taken = [table[name].scheme for table in tables]
        integers = [s for s in taken if s.bits < 16 and s.form == "affine"]
        if integers:
            found[name] = min(integers, key=lambda s: (s.bits, s.activations == "float"))
    if not found:
        raise UserError(
            f"the recipe {recipe.name} rounds no layer to integers, so there is nothing to learn: "
            "choose int8, int4 or a .yaml file"
        )
    return found


@dataclass(frozen=True)
class Rounded:
    """A student as the files of a recipe compute it; called as the student is, and differentiable.

    Attributes:
        student: whose parameters learn.
        schemes: of the layers that are rounded, by path.
        ranges: of their inputs and outputs on real photos, for static activations.
    """

    student: nn.Module
    schemes: Mapping[str, Scheme]
    ranges: Mapping[str, Ranges]

    def __call__(self, photo: Tensor, position: Tensor) -> Tensor:
        """Photo [B,3,H,W] in [-1,1] and position one-hot [B,9] to the stack [B*9,3,H,W]."""
        weights, handles = {}, []
        for name, scheme in self.schemes.items():
            layer = self.student.get_submodule(name)
            weight = layer.get_parameter("weight")
            turned = isinstance(layer, nn.ConvTranspose2d)
            weights[f"{name}.weight"] = round_weight(weight, scheme, turned)
            handles += hooked(layer, scheme, self.ranges.get(name))
        try:
            stack: Tensor = functional_call(self.student, weights, (photo, position))
        finally:
            for handle in handles:
                handle.remove()
        return stack


def rounded(student: nn.Module, recipe: Recipe, inputs: Calibration) -> Rounded:
    """A student through a recipe; ranges are those of the calibration inputs before it learns."""
    schemes = schemes_of(recipe, student)
    fixed = any(scheme.activations == "static" for scheme in schemes.values())
    return Rounded(student, schemes, observe(student, inputs) if fixed else {})


def hooked(layer: nn.Module, scheme: Scheme, ranges: Ranges | None) -> list[Any]:
    """Hooks that round what goes into a layer and, with fixed ranges, what comes out."""
    if scheme.activations == "static" and ranges is not None:
        return [
            layer.register_forward_pre_hook(lambda _, given: (fixed(given[0], ranges.input),)),
            layer.register_forward_hook(lambda _, given, output: fixed(output, ranges.output)),
        ]
    if scheme.activations == "dynamic":
        rows = by_pixel(layer, at_run_time)
        return [layer.register_forward_pre_hook(lambda _, given: (rows(given[0]),))]
    return []


def fixed(x: Tensor, span: tuple[float, float]) -> Tensor:
    """Values rounded to int8 over a fixed range, in float32 whatever their type."""
    return static(x.float(), span).to(x.dtype)


def at_run_time(x: Tensor) -> Tensor:
    """Values rounded to int8 over the range of each row (the last dimension), by torchao."""
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    config = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    found: Tensor = IntxFakeQuantizer(config)(x.float())
    return found.to(x.dtype)


def round_weight(weight: Tensor, scheme: Scheme, transposed: bool) -> Tensor:
    """A weight in a scheme's symmetric integers times a scale, by torchao; see `fake.grouped`."""
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    config = IntxFakeQuantizeConfig(getattr(torch, f"int{scheme.bits}"), "per_channel")
    rows, back = grouped(weight, scheme, transposed)
    return back(IntxFakeQuantizer(config)(rows))
