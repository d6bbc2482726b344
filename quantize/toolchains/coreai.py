"""int8 and 4-bit Core AI: blocks of integers and palettes rounded here, int8 ranges by torchao.

coreai-torch rounds nothing: it stores the integers, scales and palettes that a captured graph has.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize

from pocketfocus.quantize.layers import Calls, capture, layers_of
from pocketfocus.quantize.plan import Choice, all_static, plan
from pocketfocus.quantize.recipes import Granularity, Recipe, Scheme
from pocketfocus.quantize.toolchains.coreml import (
    SMALLEST_WEIGHT,
    clipped,
    grid,
    grouping,
    takes_int8,
)
from pocketfocus.quantize.toolchains.executorch import INT4, Half, int8

__all__ = ["FLOAT_BYTES", "choices", "grid", "program"]

TARGET = "coreai"
OPERATORS = "coreai_torch._compression.custom_layers"  # registers torch.ops.coreai
FLOAT_BYTES = 2  # of a weight that is not quantized
LEARNED = False
LEAST_SCALE = 1e-7
ROUNDS = 30  # of k-means
FLOATS_16 = "a file without int8 activations is float16 throughout unless all of it is float32"
FLOATS_32 = "a file with int8 activations is float32 elsewhere"
WEIGHTS_ONLY = "int8 activations go with per-channel int8 weights only"
NO_DYNAMIC = "activations are quantized by ranges that the file has"
NO_TENSORS = "weights alone have a scale a channel or a block"
NO_TRANSPOSED = "weights of transposed convolutions stay in floating point"
TOO_SMALL = f"weights of {SMALLEST_WEIGHT} elements or fewer stay in floating point"


class Blocks(nn.Module):
    """A weight as integers times a scale for every `block` inputs of an output, or for all of them.

    A parametrization: the weight is the integers, which Core AI's own operator multiplies.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, bits: int, block: int | None = None) -> None:
        super().__init__()
        self.dtype = INT4 if bits == 4 else torch.int8
        self.most = 2 ** (bits - 1) - 1
        self.block = block or weight.shape[1]
        grouped = self.grouped(weight.float())
        rows = grouped.flatten(0, 1).flatten(1)
        rows = clipped(rows) if bits == 4 else rows
        largest = rows.abs().amax(1).reshape(grouped.shape[:2])
        scale = (largest / self.most).clamp_min(LEAST_SCALE).to(weight.dtype)
        ones = [1] * (weight.ndim - 2)
        self.register_buffer("scale", scale.reshape(*scale.shape, *ones))

    def grouped(self, weight: Tensor) -> Tensor:
        """A weight [O,I,...] as [O,I/block,block,...]."""
        outputs, inputs, *kernel = weight.shape
        return weight.reshape(outputs, inputs // self.block, self.block, *kernel)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """The integers of a weight; a tuple, since only then a parametrization may change types."""
        grouped = self.grouped(weight.float()) / self.scale.float().unsqueeze(2)
        integers = grouped.round().clamp(-self.most, self.most).to(torch.int8)
        return (integers.reshape(weight.shape),)

    def forward(self, integers: Tensor) -> Tensor:
        # Positional: the importer reads the type at this place, and else takes int4 for 8-bit
        # integers that happen to be small.
        found: Tensor = torch.ops.coreai.constexpr_blockwise_shift_scale(
            integers, self.scale, None, None, self.dtype, None
        )
        return found


class Palette(nn.Module):
    """A weight as indices into one list of 2**bits values for every `group` outputs.

    A parametrization. The importer knows the operands by "indices" and "lut" in their names.
    """

    lut: Tensor
    indices: Tensor

    def __init__(self, weight: Tensor, bits: int, group: int) -> None:
        super().__init__()
        rows = weight.float().reshape(weight.shape[0] // group, -1)
        lists, nearest = zip(*(kmeans(row, 2**bits) for row in rows), strict=True)
        shape = (len(rows), *[1] * (weight.ndim - 1), 2**bits, 1)
        self.register_buffer("lut", torch.stack(lists).reshape(shape).to(weight.dtype))
        indices = torch.stack(nearest).to(torch.uint8).reshape(weight.shape)
        self.register_buffer("indices", indices)

    def right_inverse(self, _: Tensor) -> tuple[Tensor]:
        """Nothing is left of the weight itself."""
        return (torch.empty(0),)

    def forward(self, _: Tensor) -> Tensor:
        found: Tensor = torch.ops.coreai.lut_to_dense(self.indices, self.lut, -1)
        return found


def kmeans(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means of numbers [N], begun with quantiles: the centres, and each one's nearest."""
    centres = torch.quantile(values, (torch.arange(count) + 0.5) / count)
    for _ in range(ROUNDS):
        nearest = torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)
        sums = torch.zeros(count).index_add_(0, nearest, values)
        counts = torch.bincount(nearest, minlength=count)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres).sort().values
    return centres, torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)


def choose(requested: Scheme, layer: nn.Module) -> Choice:
    """What a Core AI file takes in place of a scheme: int8 beside int8 activations, else blocks or
    palettes beside floating point."""
    if requested.bits >= 16:
        return Choice(requested)
    if takes_int8(requested):
        why = NO_DYNAMIC if requested.activations == "dynamic" else ""
        return Choice(Scheme(8, "affine", "channel", "static"), why)
    reasons = [WEIGHTS_ONLY] if requested.activations != "float" else []
    weight = layer.get_parameter("weight")
    if weight.numel() <= SMALLEST_WEIGHT or isinstance(layer, nn.ConvTranspose2d):
        small = weight.numel() <= SMALLEST_WEIGHT
        return Choice(Scheme(16), "; ".join([*reasons, TOO_SMALL if small else NO_TRANSPOSED]))
    bits, form, granularity = requested.bits, requested.form, requested.granularity
    if isinstance(granularity, int):
        group, reason = grouping(form, granularity, layer)
        reasons += [reason] if reason else []
        if group is None:
            bits, form = 8, "affine"
        granularity = group or "channel"
    elif granularity == "tensor" and form == "affine":
        reasons.append(NO_TENSORS)
        granularity = "channel"
    return Choice(Scheme(bits, form, granularity), "; ".join(reasons))


def choices(recipe: Recipe, network: nn.Module) -> dict[str, Choice]:
    """What is written of a recipe, layer by layer; UserError for patterns that fit none."""
    found = plan(recipe, TARGET, network, choose)
    schemes = [choice.scheme for choice in found.values()]
    if all(scheme.bits == 32 for scheme in schemes):
        return found
    static = any(scheme.activations == "static" for scheme in schemes)
    bits, why = (32, FLOATS_32) if static else (16, FLOATS_16)
    return {
        name: Choice(Scheme(bits), "; ".join(filter(None, (choice.why, why))))
        if choice.scheme.bits >= 16 and choice.scheme.bits != bits
        else choice
        for name, choice in found.items()
    }


def program(network: nn.Module, schemes: Mapping[str, Scheme], calls: Calls) -> ExportedProgram:
    """What coreai-torch takes: the captured graph, with integers and palettes already in it."""
    import_module(OPERATORS)
    static = {name: scheme for name, scheme in schemes.items() if scheme.activations == "static"}
    halved = not static and any(scheme.bits < 32 for scheme in schemes.values())
    model = Half(network).eval() if halved else copy.deepcopy(network).eval()
    compress(model.network if isinstance(model, Half) else model, schemes)
    captured = capture(model, calls)
    if static:
        between = all_static(schemes)
        captured = capture(int8(captured, calls, static, between), calls)
    return captured


def compress(network: nn.Module, schemes: Mapping[str, Scheme]) -> None:
    """Blocks and palettes for these layers' weights beside floating point, in place."""
    network.requires_grad_(False)
    for name, layer in layers_of(network).items():
        scheme = schemes[name]
        if scheme.bits >= 16 or scheme.activations != "float":
            continue
        weight = layer.get_parameter("weight").detach()
        form = form_of(weight, scheme)
        parametrize.register_parametrization(layer, "weight", form, unsafe=True)


def form_of(weight: Tensor, scheme: Scheme) -> Blocks | Palette:
    """The parametrization that keeps a weight in a scheme that `choose` gave."""
    group: Granularity = scheme.granularity
    if scheme.form == "palette":
        outputs = {"tensor": weight.shape[0], "channel": 1}
        return Palette(weight, scheme.bits, group if isinstance(group, int) else outputs[group])
    block = group // weight[0, 0].numel() if isinstance(group, int) else None
    return Blocks(weight, scheme.bits, block)
