"""A network as schemes would have it: weights and activations of its layers rounded, in float32.

The gradient passes straight through the rounding (Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import Scheme

Round = Callable[[Tensor], Tensor]
Grid = Callable[[Tensor, Scheme], Tensor]
"""Rows [R,N] of weights, each with a scale of its own, to a scheme's signed integers times that
scale: what targets differ in is where the largest weight of a row comes to lie."""

LOWEST, HIGHEST = -128, 127
TINY = 1e-12  # a scale is never zero
SHARES = tuple(0.6 + 0.025 * step for step in range(17))  # of the scale that reaches all weights


@dataclass(frozen=True)
class Ranges:
    """Lowest and highest value of a layer's input and output on the calibration inputs."""

    input: tuple[float, float]
    output: tuple[float, float]


def observe(network: nn.Module, inputs: Any) -> dict[str, Ranges]:
    """The ranges of every layer over all calibration inputs."""
    seen: dict[str, list[tuple[float, float, float, float]]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            x = arguments[0]
            bounds = (x.min(), x.max(), output.min(), output.max())
            seen.setdefault(name, []).append(tuple(map(float, bounds)))  # type: ignore[arg-type]

        return hook

    handles = [
        layer.register_forward_hook(watch(name)) for name, layer in layers_of(network).items()
    ]
    try:
        with torch.inference_mode():
            for arguments in inputs:
                network(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Ranges(
            (min(r[0] for r in rows), max(r[1] for r in rows)),
            (min(r[2] for r in rows), max(r[3] for r in rows)),
        )
        for name, rows in seen.items()
    }


@dataclass(frozen=True)
class Rounded:
    """A network with some layers rounded; called as the network is, and differentiable.

    Attributes:
        network: which stays as it is; its parameters get the gradients.
        schemes: of the layers that are rounded, by path. ValueError, when called, for palettes.
        ranges: of inputs and outputs, of every layer with static activations.
        grid: the integers of the weights.
    """

    network: nn.Module
    schemes: Mapping[str, Scheme]
    ranges: Mapping[str, Ranges]
    grid: Grid

    def __call__(self, *arguments: Tensor) -> Any:
        weights: dict[str, Tensor] = {}
        handles: list[Any] = []
        try:
            for name, scheme in self.schemes.items():
                layer = self.network.get_submodule(name)
                transposed = isinstance(layer, nn.ConvTranspose2d)
                weight = layer.get_parameter("weight")
                weights[f"{name}.weight"] = round_weight(weight, scheme, transposed, self.grid)
                handles += self._hooks(name, layer, scheme)
            found = functional_call(self.network, weights, arguments)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _hooks(self, name: str, layer: nn.Module, scheme: Scheme) -> list[Any]:
        if scheme.bits < 16 and scheme.activations == "static":
            span = self.ranges[name]
            return [
                layer.register_forward_pre_hook(lambda _, given: (static(given[0], span.input),)),
                layer.register_forward_hook(lambda _, given, output: static(output, span.output)),
            ]
        if scheme.bits < 16 and scheme.activations == "dynamic":
            rows = by_pixel(layer, dynamic)
            return [layer.register_forward_pre_hook(lambda _, given: (rows(given[0]),))]
        return []


def symmetric(rows: Tensor, scheme: Scheme, least: float = 0.0) -> Tensor:
    """The largest weight of a row is the largest integer, 127 or 7, and no scale is below `least`:
    a `Grid`, at 4 bits the coarsest."""
    largest = 2 ** (scheme.bits - 1) - 1
    return scaled(rows, (rows.abs().amax(1) / largest).clamp_min(least), scheme)


def scaled(rows: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
    """Rows rounded to signed integers times these scales, one a row."""
    half = 2 ** (scheme.bits - 1)
    scales = torch.where(scales.abs() < TINY, TINY, scales).detach()
    zeros = torch.zeros(len(scales), dtype=torch.int32, device=rows.device)
    return torch.fake_quantize_per_channel_affine(rows, scales, zeros, 0, -half, half - 1)


@torch.no_grad()
def best_scales(rows: Tensor, whole: Tensor, ends: tuple[int, int]) -> Tensor:
    """The scale of each row, of `SHARES` of `whole`, that rounds it to integers between `ends` with
    the least squared error: clipping a large weight costs less than a coarse scale for all."""
    whole = torch.where(whole.abs() < TINY, TINY, whole)
    tried = torch.stack([share * whole for share in SHARES])
    errors = [
        (integers(rows, scales, ends) * scales[:, None] - rows).square().sum(1) for scales in tried
    ]
    return tried.gather(0, torch.stack(errors).argmin(0)[None])[0]


def integers(rows: Tensor, scales: Tensor, ends: tuple[int, int]) -> Tensor:
    """Rows over their scales, rounded to integers between `ends`."""
    return (rows / scales[:, None]).round().clamp(*ends)


def round_weight(weight: Tensor, scheme: Scheme, transposed: bool, grid: Grid) -> Tensor:
    """A weight in a scheme's values: float16, or the integers of a grid times a scale.

    Its outputs come first, or second when `transposed`. ValueError for palettes.
    """
    if scheme.bits >= 16:
        return weight.half().float() if scheme.bits == 16 else weight
    if scheme.form != "affine":
        raise ValueError("palettes are made by coremltools alone")
    rows, back = grouped(weight, scheme, transposed)
    return back(grid(rows, scheme))


def grouped(weight: Tensor, scheme: Scheme, transposed: bool) -> tuple[Tensor, Round]:
    """A weight as rows that share a scale, and what makes such rows a weight again.

    A group is of one output's weights, its last one filled with zeros. Outputs come first in a
    weight, or second when `transposed`.
    """
    turned = weight.transpose(0, 1) if transposed else weight
    outputs = turned.reshape(turned.shape[0], -1)
    count, width = outputs.shape
    rows = outputs
    if scheme.granularity == "tensor":
        rows = outputs.reshape(1, -1)
    elif isinstance(scheme.granularity, int):
        spare = -width % scheme.granularity
        rows = nn.functional.pad(outputs, (0, spare)).reshape(-1, scheme.granularity)

    def back(found: Tensor) -> Tensor:
        whole = found.reshape(count, -1)[:, :width].reshape(turned.shape)
        return whole.transpose(0, 1) if transposed else whole

    return rows, back


def static(x: Tensor, span: tuple[float, float]) -> Tensor:
    """Values rounded to int8 over a fixed range, one scale for all; in float32 whatever their
    type."""
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    scale = max((high - low) / (HIGHEST - LOWEST), TINY)
    zero = int(min(max(round(LOWEST - low / scale), LOWEST), HIGHEST))
    made = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, LOWEST, HIGHEST)
    return made.to(x.dtype)


def by_pixel(layer: nn.Module, rounding: Round) -> Round:
    """A rounding of rows (the last dimension) for a layer's input: a convolution's rows are the
    channels of its pixels."""
    if not isinstance(layer, nn.Conv2d):
        return rounding
    return lambda x: rounding(x.movedim(1, -1)).movedim(-1, 1)


def dynamic(x: Tensor) -> Tensor:
    """Values rounded to int8 over the range of each row (the last dimension), by torchao."""
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    config = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    found: Tensor = IntxFakeQuantizer(config)(x.float())
    return found.to(x.dtype)
