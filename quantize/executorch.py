"""int8 and 4-bit for XNNPACK, with torchao's own quantizers.

int8: PT2E static quantization, one scale a weight channel, one scale a tensor of activations.
int4: torchao stops at linear layers, so these take groups of 4-bit weights with activations
quantized to int8 at run time; convolutions stay at static int8, in the same graph.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pocketfocus.quantize.layers import quantizable
from pocketfocus.quantize.recipes import Recipe

INT4: torch.dtype = getattr(torch, "int4")  # noqa: B009 - missing from torch's type stubs


class Half(nn.Module):
    """A student in float16 between casts, so that the file still takes and gives float32."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = copy.deepcopy(student).half()

    def forward(self, photo: Tensor, position: Tensor) -> Tensor:
        stack: Tensor = self.student(photo.half(), position.half())
        return stack.float()


class Rows(nn.Module):
    """A linear layer on [B,H,W,C] through [B*H*W,C]: the only form of 4 bits XNNPACK takes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        *shape, channels = x.shape
        y: Tensor = self.linear(x.reshape(-1, channels))
        return y.reshape(*shape, -1)


Inputs = Iterable[tuple[Tensor, ...]]
"""What a network is called with, each time; the first one also fixes the shapes."""


def quantized(student: nn.Module, recipe: Recipe, inputs: Inputs) -> tuple[Any, int]:
    """A module that torch.export and XNNPACK take, and its number of 4-bit linear layers."""
    return quantized_in_place(copy.deepcopy(student).eval(), recipe, inputs)


def quantized_in_place(model: nn.Module, recipe: Recipe, inputs: Inputs) -> tuple[Any, int]:
    """The same for a model that nobody needs afterwards: its weights are in memory once."""
    four_bit = 0
    if recipe.weight_bits == 16:
        return Half(model).eval(), 0
    if recipe.weight_bits == 4:
        four_bit = group_linears(model, recipe.group_size)
    if recipe.calibrated:
        only_convolutions = recipe.weight_bits == 4
        return static_int8(capture(model, inputs), inputs, only_convolutions), four_bit
    return model, four_bit


def capture(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The torch.export program at the static shapes of the calibration inputs."""
    with torch.no_grad():
        return torch.export.export(model, next(iter(inputs)))


def static_int8(program: ExportedProgram, inputs: Inputs, only_convolutions: bool) -> Any:
    """Observe the inputs, then fix every scale (torchao PT2E, XNNPACK's quantizer).

    Layers, and the operators between them; what follows the last layer stays in floating point.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True)
    graph = program.module()
    quantizer = XNNPACKQuantizer().set_filter_function(quantizable(graph.graph))
    if only_convolutions:
        aten = torch.ops.aten
        for operator in (aten.conv2d.default, aten.conv_transpose2d.input):
            quantizer.set_operator_type(operator, config)
    else:
        quantizer.set_global(config)
    observed = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for arguments in inputs:
            observed(*arguments)
    return convert_pt2e(observed)


def group_linears(model: nn.Module, group_size: int) -> int:
    """4-bit weights, in place, for every linear layer whose inputs split into groups; how many."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.utils import unwrap_tensor_subclass

    count = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and groupable(layer, group_size):
                setattr(parent, name, Rows(layer))
                count += 1
    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=INT4, weight_granularity=PerGroup(group_size)
    )
    quantize_(model, config, lambda layer, _: groupable(layer, group_size))
    unwrap_tensor_subclass(model)
    return count


def groupable(layer: nn.Module, group_size: int) -> bool:
    """Whether a layer is linear and its inputs are whole groups."""
    return isinstance(layer, nn.Linear) and layer.in_features % group_size == 0
