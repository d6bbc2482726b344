"""int8 and 4-bit for XNNPACK, with torchao's own quantizers.

8 bits: PT2E quantization, weights per-channel, activations per-tensor; where their ranges are found
at run time, in rows of linear layers and 1x1 convolutions, which are linear layers of every pixel
then: torchao's quantizer leaves a convolution out that a ReLU follows.
4 bits: torchao stops at linear layers, so these, and 1x1 convolutions, which are linear layers of
every pixel, take groups of 4-bit weights with activations quantized to int8 at run time; other
convolutions stay at static int8, in the same graph.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pocketfocus.quantize.fake import symmetric
from pocketfocus.quantize.layers import Calls, capture, quantizable
from pocketfocus.quantize.plan import Choice, plan
from pocketfocus.quantize.recipes import Granularity, Recipe, Scheme

TARGET = "executorch"
FLOAT_BYTES = 4  # of a weight that is not quantized
LEARNED = True
GROUPS = 32  # weights that share a 4-bit scale: a multiple of it
LEAST_SCALE = 2**-12  # of int8 weights, by XNNPACK's quantizer

# All but concatenations, whose annotator takes every one in the graph, whatever the filter says.
OPERATORS = (
    *(torch.ops.aten.conv2d.default, torch.ops.aten.conv_transpose2d.input),
    *(torch.ops.aten.linear.default, torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor),
)
INT4: torch.dtype = getattr(torch, "int4")  # noqa: B009 - missing from torch's type stubs


class Half(nn.Module):
    """A network in float16 between casts, so that the file still takes and gives float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        made = self.network(*(tensor.half() for tensor in inputs))
        outputs = made if isinstance(made, tuple) else (made,)
        return tuple(output.float() for output in outputs)


class Rows(nn.Module):
    """A linear layer on [B,H,W,C] through [B*H*W,C]: the only form that XNNPACK takes of 4 bits,
    and of activations quantized at run time."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        *shape, channels = x.shape
        y: Tensor = self.linear(x.reshape(-1, channels))
        return y.reshape(*shape, -1)


class PerPixel(nn.Module):
    """A 1x1 convolution [B,C,H,W] -> [B,D,H,W] as a linear layer of every pixel."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        inputs, outputs = convolution.in_channels, convolution.out_channels
        self.linear = nn.Linear(inputs, outputs, convolution.bias is not None)
        self.linear.weight = nn.Parameter(convolution.weight.detach().flatten(1))
        if convolution.bias is not None:
            self.linear.bias = cast(nn.Parameter, convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = self.linear(x.permute(0, 2, 3, 1).reshape(-1, channels))
        return y.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


ARITHMETIC_16 = "XNNPACK's serializer stores convolution weights as float32"
NO_PALETTES = "XNNPACK has no palettes"
NO_4_BIT_CONVOLUTIONS = "XNNPACK has 4-bit weights in linear layers and 1x1 convolutions only"
NO_WEIGHTS_ALONE = "XNNPACK takes integer weights with int8 activations only"
NO_8_BIT_GROUPS = "XNNPACK has groups of 4-bit weights only"
WHOLE_GROUPS = f"XNNPACK's 4-bit weights share a scale by multiples of {GROUPS}"
NO_4_BIT_TENSORS = "XNNPACK's 4-bit weights have a scale a channel or a group"
DYNAMIC_ONLY = "XNNPACK multiplies 4-bit weights with activations quantized at run time"
DYNAMIC_CHANNELS = "XNNPACK takes ranges found at run time beside a scale a channel only"
STATIC_CONVOLUTIONS = "ranges are found at run time in linear layers and 1x1 convolutions only"


def choose(requested: Scheme, layer: nn.Module) -> Choice:
    """What XNNPACK takes in place of a scheme: 4 bits in linear layers and 1x1 convolutions, else
    int8 affine."""
    if requested.bits >= 16:
        stored = 32 if not isinstance(layer, nn.Linear) else requested.bits
        return Choice(Scheme(stored), ARITHMETIC_16 if stored != requested.bits else "")
    why = [NO_PALETTES] if requested.form == "palette" else []
    group = 32 if requested.form == "palette" else requested.granularity
    if requested.bits == 4:
        inputs = linear_inputs(layer)
        if not inputs:
            why.append(NO_4_BIT_CONVOLUTIONS)
        elif group == "tensor":
            why.append(NO_4_BIT_TENSORS)
        elif isinstance(group, int) and inputs % group:
            why.append(f"{inputs} inputs are no whole groups of {group}")
        elif (inputs if group == "channel" else int(group)) % GROUPS:
            why.append(WHOLE_GROUPS)
        else:
            if group == "channel":
                why.append(f"a scale a channel is one for all its {inputs} weights")
                group = inputs
            why += [DYNAMIC_ONLY] if requested.activations != "dynamic" else []
            return Choice(Scheme(4, "affine", group, "dynamic"), "; ".join(why))
    activations = requested.activations if requested.bits == 8 else "static"
    if activations == "float":
        why.append(NO_WEIGHTS_ALONE)
        activations = "static"
    elif activations == "dynamic" and not linear_inputs(layer):
        why.append(STATIC_CONVOLUTIONS)
        activations = "static"
    if isinstance(group, int):
        why += [NO_8_BIT_GROUPS] if requested.bits == 8 and requested.form == "affine" else []
        group = "channel"
    elif group == "tensor" and activations == "dynamic":
        why.append(DYNAMIC_CHANNELS)
        group = "channel"
    return Choice(Scheme(8, "affine", group, activations), "; ".join(why))


def linear_inputs(layer: nn.Module) -> int:
    """How many inputs each output of a linear layer or a 1x1 convolution has; 0 for any other."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    ones = (1, 1)
    if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride) == (ones, ones):
        return layer.in_channels if layer.groups == 1 and layer.padding == (0, 0) else 0
    return 0


def choices(recipe: Recipe, network: nn.Module) -> dict[str, Choice]:
    """What is requested of XNNPACK, layer by layer; UserError for patterns that fit none."""
    return plan(recipe, TARGET, network, choose)


def grid(rows: Tensor, scheme: Scheme) -> Tensor:
    """See `fake.Grid`: at 4 bits torchao's, whose largest weight is 7.5 steps; at 8 bits those of
    XNNPACK's quantizer."""
    if scheme.bits == 8:
        return symmetric(rows, scheme, LEAST_SCALE)
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    found: Tensor = IntxFakeQuantizer(IntxFakeQuantizeConfig(INT4, "per_channel"))(rows)
    return found


def quantized(model: nn.Module, recipe: Recipe, calls: Calls, multiple: int = 0) -> tuple[Any, int]:
    """A module that torch.export and XNNPACK take, and its number of layers at 4 bits.

    With `multiple` it takes photos of other sizes too, see `capture`: rounded once for all.
    Nobody needs the model afterwards, so that its weights are in memory once.
    """
    schemes = {name: choice.scheme for name, choice in choices(recipe, model).items()}
    if schemes and all(s.bits == 16 for s in recipe.requested(TARGET, schemes).values()):
        return Half(model).eval(), 0
    four_bit = {name: s.granularity for name, s in schemes.items() if s.bits == 4}
    group_linears(model, four_bit)
    eight_bit = {name: s for name, s in schemes.items() if s.bits == 8}
    dynamic = [name for name, scheme in eight_bit.items() if scheme.activations == "dynamic"]
    products = {name: f"{name}.linear" for name in dynamic}
    multiply_rows(model, products)
    eight_bit = {products.get(name, name): scheme for name, scheme in eight_bit.items()}
    if eight_bit:
        captured = capture(model, calls, multiple)
        return int8(captured, calls, eight_bit, not four_bit), len(four_bit)
    return model, len(four_bit)


def int8(
    program: ExportedProgram, calls: Calls, schemes: Mapping[str, Scheme], between: bool
) -> Any:
    """Observe the calls, then fix every scale (torchao PT2E, XNNPACK's quantizer).

    Only these layers and, if `between`, the additions between layers: what follows the last layer
    stays in floating point.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import ComposableQuantizer

    graph = program.module()
    # Theirs with batch norms take seconds to be traced each time.
    has_norms = any("batch_norm" in str(node.target) for node in graph.graph.nodes)
    known = XNNPACKQuantizer.SUPPORTED_PATTERNS
    patterns = [each for each in known if has_norms or "_bn" not in each.name]
    quantizers = []
    for scheme in sorted(set(schemes.values()), key=str):
        names = {name for name, found in schemes.items() if found == scheme}
        dynamic = scheme.activations == "dynamic"
        config = get_symmetric_quantization_config(
            is_per_channel=scheme.granularity == "channel", is_dynamic=dynamic
        )
        filtered = quantizable(graph.graph, names, between and not dynamic)
        quantizer = XNNPACKQuantizer().set_filter_function(filtered)
        quantizer.SUPPORTED_PATTERNS = patterns
        for operator in OPERATORS:
            quantizer.set_operator_type(operator, config)
        quantizers.append(quantizer)
    observed = prepare_pt2e(graph, ComposableQuantizer(quantizers))
    with torch.no_grad():
        for arguments in calls:
            observed(*arguments)
    return convert_pt2e(observed)


def multiply_rows(model: nn.Module, layers: Iterable[str]) -> None:
    """Make products of rows, in place, of these linear layers and 1x1 convolutions."""
    for path in layers:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        layer = owner.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            setattr(owner, name, PerPixel(layer))
        else:
            setattr(owner, name, Rows(cast(nn.Linear, layer)))


def group_linears(model: nn.Module, layers: Mapping[str, Granularity]) -> None:
    """4-bit weights, in place, for these linear layers and 1x1 convolutions: per-channel, or with
    one scale for so many."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.utils import unwrap_tensor_subclass

    if not layers:
        return
    multiply_rows(model, layers)
    for granularity in sorted(set(layers.values()), key=str):
        paths = {f"{path}.linear" for path, found in layers.items() if found == granularity}
        config = Int8DynamicActivationIntxWeightConfig(
            weight_dtype=INT4,
            weight_granularity=PerGroup(granularity)
            if isinstance(granularity, int)
            else PerAxis(0),
        )
        quantize_(model, config, lambda _, path, paths=paths: path in paths)
    unwrap_tensor_subclass(model)
