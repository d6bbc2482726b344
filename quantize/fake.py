"""One layer of a network as a scheme would have it: weights and activations rounded, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import Scheme

Round = Callable[[Tensor], Tensor]

LOWEST, HIGHEST = -128, 127
TINY = 1e-12  # a scale is never zero


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


@contextmanager
def rounded_layer(
    network: nn.Module, name: str, scheme: Scheme, ranges: Mapping[str, Ranges]
) -> Iterator[None]:
    """Within, the layer computes with a scheme's weights and activations; afterwards as before."""
    layer = network.get_submodule(name)
    weight = layer.get_parameter("weight")
    kept = weight.detach().clone()
    handles = []
    if scheme.bits < 16 and scheme.activations == "static":
        span = ranges[name]
        handles = [
            layer.register_forward_pre_hook(lambda _, given: (static(given[0], span.input),)),
            layer.register_forward_hook(lambda _, given, output: static(output, span.output)),
        ]
    elif scheme.bits < 16 and scheme.activations == "dynamic":
        rows = by_pixel(layer, dynamic)
        handles = [layer.register_forward_pre_hook(lambda _, given: (rows(given[0]),))]
    try:
        weight.data.copy_(round_weight(kept, scheme, isinstance(layer, nn.ConvTranspose2d)))
        yield
    finally:
        weight.data.copy_(kept)
        for handle in handles:
            handle.remove()


def round_weight(weight: Tensor, scheme: Scheme, transposed: bool) -> Tensor:
    """A weight in a scheme's values: float16, or symmetric integers times a scale.

    Its outputs come first, or second when `transposed`. ValueError for palettes.
    """
    if scheme.bits >= 16:
        return weight.half().float() if scheme.bits == 16 else weight
    if scheme.form != "affine":
        raise ValueError("palettes are made by coremltools alone")
    groups, back = grouped(weight, scheme, transposed)
    highest = 2 ** (scheme.bits - 1) - 1
    scales = (groups.abs().amax(1) / highest).clamp_min(TINY)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    lowest = -highest - 1
    return back(torch.fake_quantize_per_channel_affine(groups, scales, zeros, 0, lowest, highest))


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
    """Values rounded to int8 over a fixed range, one scale for all."""
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    scale = max((high - low) / (HIGHEST - LOWEST), TINY)
    zero = int(min(max(round(LOWEST - low / scale), LOWEST), HIGHEST))
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, LOWEST, HIGHEST)


def by_pixel(layer: nn.Module, rounding: Round) -> Round:
    """A rounding of rows (the last dimension) for a layer's input: a convolution's rows are the
    channels of its pixels."""
    if not isinstance(layer, nn.Conv2d):
        return rounding
    return lambda x: rounding(x.movedim(1, -1)).movedim(-1, 1)


def dynamic(x: Tensor) -> Tensor:
    """Values rounded to int8 over the range of each row (the last dimension)."""
    rows = x.reshape(-1, x.shape[-1])
    low, high = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
    scales = ((high - low) / (HIGHEST - LOWEST)).clamp_min(TINY)
    zeros = (LOWEST - low / scales).round().clamp(LOWEST, HIGHEST).to(torch.int32)
    found = torch.fake_quantize_per_channel_affine(rows, scales, zeros, 0, LOWEST, HIGHEST)
    return found.reshape(x.shape)
