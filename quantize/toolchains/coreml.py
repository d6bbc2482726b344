"""int8 and 4-bit Core ML. Palettes and weights by coremltools, activation ranges by torchao.

coremltools' own activation quantizer has to predict, which needs macOS. The other documented way
works anywhere: `ct.convert` of a graph quantized by torchao's PT2E becomes Core ML's own
`quantize` / `dequantize`, with int8 weights in the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from pocketfocus.quantize.fake import best_scales, grouped, symmetric
from pocketfocus.quantize.layers import Calls, capture
from pocketfocus.quantize.plan import Choice, all_static, plan
from pocketfocus.quantize.recipes import GROUP, IOS_VERSIONS, Granularity, Recipe, Rule, Scheme
from pocketfocus.quantize.toolchains.executorch import LEAST_SCALE, int8
from pocketfocus.run.errors import UserError

TARGET = "coreml"
FLOAT_BYTES = 2  # of a weight that is not quantized
LEARNED = True
MOST_4 = 7  # the largest integer of 4 bits; the least is its opposite
SMALLEST_WEIGHT = 512  # elements; fewer are not worth a palette
MODERN_IOS = 18  # has blocks of integers, and palettes for groups of channels
FLOATS_16 = "a file is float16 throughout unless float32 is requested of every layer"
TOO_SMALL = f"weights of {SMALLEST_WEIGHT} elements or fewer stay float16"
NO_BLOCKS = "iOS 17 has no blocks of integers"
NO_4_BIT_INTEGERS = "iOS 17 has no 4-bit integers"
NO_GROUPED_PALETTES = "iOS 17 has one palette a weight"
WEIGHTS_ONLY = "Core ML takes int8 activations beside per-channel int8 weights only"
NO_DYNAMIC = "Core ML finds no ranges at run time"

FORMS = {
    "palettes": (17, Scheme(4, "palette", 8)),  # found by k-means
    "blocks": (MODERN_IOS, Scheme(4, "affine", GROUP)),
}
"""How Core ML keeps 4-bit weights: the oldest iOS that reads it, and its scheme."""


def adapted(recipe: Recipe, options: Mapping[str, str | int]) -> Recipe:
    """The recipe with Core ML's deployment target `ios` and the `form` of 4-bit weights, one of
    `FORMS`; without them as it says.

    UserError for unknown ones, or a form that this iOS does not read.
    """
    ios, form = options.get("ios"), options.get("form")
    if ios is not None:
        recipe = recipe.model_copy(update={"ios": ios_version(ios)})
    if form is None:
        return recipe
    if form not in FORMS:
        raise UserError(f"unknown form of 4-bit weights '{form}': choose from {', '.join(FORMS)}")
    oldest, scheme = FORMS[str(form)]
    if recipe.ios < oldest:
        others = [name for name, (least, _) in FORMS.items() if least <= recipe.ios]
        raise UserError(
            f"iOS {recipe.ios} cannot read 4-bit {form}, which came with iOS {oldest}: choose "
            f"--four-bit {others[0]}, or --ios {oldest}"
        )
    rules: list[Rule] = []
    for rule in recipe.rules:
        rules.append(rule)
        if rule.bits == 4 and (not rule.targets or TARGET in rule.targets):
            rules.append(Rule.of(rule.layers, scheme, [TARGET]))
    return recipe.model_copy(update={"rules": tuple(rules)})


def ios_version(version: str | int) -> int:
    """The version; UserError when no Core ML file is written for it."""
    known = {str(each): each for each in IOS_VERSIONS}
    if str(version) not in known:
        raise UserError(
            f"no Core ML file is written for iOS {version}: choose from {', '.join(known)}"
        )
    return known[str(version)]


def choose(requested: Scheme, layer: nn.Module, ios: int) -> Choice:
    """What Core ML of an iOS takes in place of a scheme: nearly all of iOS 18, less of iOS 17."""
    if requested.bits >= 16:
        return Choice(requested)
    if takes_int8(requested):
        why_static = NO_DYNAMIC if requested.activations == "dynamic" else ""
        return Choice(Scheme(8, "affine", "channel", "static"), why_static)
    why = [WEIGHTS_ONLY] if requested.activations != "float" else []
    if layer.get_parameter("weight").numel() <= SMALLEST_WEIGHT:
        return Choice(Scheme(16), "; ".join([*why, TOO_SMALL]))
    form, granularity = requested.form, requested.granularity
    if ios < MODERN_IOS:
        if form == "affine" and requested.bits == 4:
            why.append(NO_4_BIT_INTEGERS)
            form, granularity = "palette", "tensor"
        elif form == "affine" and isinstance(granularity, int):
            why.append(NO_BLOCKS)
            granularity = "channel"
        elif form == "palette" and granularity != "tensor":
            why.append(NO_GROUPED_PALETTES)
            granularity = "tensor"
    if isinstance(granularity, int):
        group, reason = grouping(form, granularity, layer)
        why += [reason] if reason else []
        if group is None:
            return Choice(Scheme(16), "; ".join(why))
        granularity = group
    return Choice(Scheme(requested.bits, form, granularity), "; ".join(why))


def takes_int8(requested: Scheme) -> bool:
    """Whether int8 activations are requested, beside the weights that they go with."""
    weights = (requested.bits, requested.granularity) == (8, "channel")
    return weights and requested.activations != "float"


def grouping(form: str, count: int, layer: nn.Module) -> tuple[Granularity | None, str]:
    """What shares a scale where `count` inputs are requested to, or a palette where outputs are;
    None where these are no whole groups; and why it is another."""
    whole = channels(layer)[form != "palette"]
    if whole % count:
        kind = "outputs" if form == "palette" else "inputs"
        return None, f"{whole} {kind} are no whole groups of {count}"
    if whole == count:
        return "tensor" if form == "palette" else "channel", f"{count} is all there are"
    area = kernel_area(layer) if form == "affine" else 1
    return count * area, "a block spans the whole kernel" if area > 1 else ""


def channels(layer: nn.Module) -> tuple[int, int]:
    """The channels along a weight's output and input axis, as Core ML stores it."""
    shape = layer.get_parameter("weight").shape
    if isinstance(layer, nn.ConvTranspose2d):
        return shape[1], shape[0]
    return shape[0], shape[1]


def kernel_area(layer: nn.Module) -> int:
    """Weights between an input and an output channel: 1 of a linear layer."""
    return math.prod(layer.get_parameter("weight").shape[2:])


def choices(recipe: Recipe, network: nn.Module) -> dict[str, Choice]:
    """What is requested of coremltools, layer by layer; UserError for patterns that fit none."""
    found = plan(recipe, TARGET, network, partial(choose, ios=recipe.ios))
    if all(choice.scheme.bits == 32 for choice in found.values()):
        return found
    float16 = Choice(Scheme(16), FLOATS_16)
    return {name: float16 if c.scheme.bits == 32 else c for name, c in found.items()}


def grid(rows: Tensor, scheme: Scheme) -> Tensor:
    """See `fake.Grid`: coremltools', whose largest weight is 7 or 127 steps, at 4 bits of `clipped`
    weights, or XNNPACK's quantizer's beside int8 activations."""
    if scheme.bits == 4:
        rows = clipped(rows)
    return symmetric(rows, scheme, LEAST_SCALE if scheme.activations == "static" else 0.0)


def clipped(rows: Tensor) -> Tensor:
    """Rows of weights between 7 steps of their `best_scales`: the largest weight is what sets the
    scale in coremltools."""
    most = MOST_4 * best_scales(rows, rows.abs().amax(1) / MOST_4, (-MOST_4, MOST_4))[:, None]
    return rows.clamp(-most, most)


def clip(model: nn.Module, schemes: Mapping[str, Scheme]) -> None:
    """Clip, in place, what is going to be integers of 4 bits, block by block."""
    for name, scheme in schemes.items():
        if scheme.bits == 4 and scheme.form == "affine":
            layer = model.get_submodule(name)
            weight = layer.get_parameter("weight").data
            rows, back = grouped(weight, scheme, isinstance(layer, nn.ConvTranspose2d))
            weight.copy_(back(clipped(rows.float())))


def programs(
    module: nn.Module, schemes: Mapping[str, Scheme], sizes: Sequence[Calls], multiple: int
) -> list[ExportedProgram]:
    """What ct.convert takes for photos of each size: the captured graph, with int8 activations
    already in it, of the first one's calls; sides are multiples of `multiple`, 0 for one size."""
    static = {name: scheme for name, scheme in schemes.items() if scheme.activations == "static"}
    if static:
        captured = capture(module, sizes[0], multiple)
        module = int8(captured, sizes[0], static, between=all_static(schemes))
    return [capture(module, calls).run_decompositions({}) for calls in sizes]


@dataclass(frozen=True)
class Compression:
    """What becomes of a program's weights: `config_of` schemes, None for what stays as it is.

    Attributes:
        named: by the names of weights in the program.
        by_operator: of the other weights of an operator.
        others: of all others.
    """

    named: Mapping[str, object] = field(default_factory=dict)
    by_operator: Mapping[str, object] = field(default_factory=dict)
    others: Any = None


def compressed(model: Any, how: Compression) -> Any:
    """The model with integer weights or palettes (by k-means) for some of its weights."""
    from coremltools.optimize import coreml

    for compress, kind in (
        (coreml.palettize_weights, coreml.OpPalettizerConfig),
        (coreml.linear_quantize_weights, coreml.OpLinearQuantizerConfig),
    ):
        named = {name: each for name, each in how.named.items() if isinstance(each, kind)}
        others = how.others if isinstance(how.others, kind) else None
        operators = {
            name: each if isinstance(each, kind) else None for name, each in how.by_operator.items()
        }
        if named or others or any(operators.values()):
            model = compress(model, coreml.OptimizationConfig(others, operators, named))
    return model


def config_of(scheme: Scheme, area: int = 1) -> Any:
    """A scheme in coremltools' words, for a kernel of `area` places; integers are symmetric.

    None for what is not compressed: floats, and weights that are integers already.
    """
    if scheme.bits >= 16 or scheme.activations != "float":
        return None
    from coremltools.optimize.coreml import OpLinearQuantizerConfig, OpPalettizerConfig

    grouped = isinstance(scheme.granularity, int)
    if scheme.form == "palette":
        one_tensor = scheme.granularity == "tensor"
        return OpPalettizerConfig(
            mode="kmeans",
            nbits=scheme.bits,
            granularity="per_tensor" if one_tensor else "per_grouped_channel",
            group_size=scheme.granularity if grouped else 1,
            weight_threshold=SMALLEST_WEIGHT,
        )
    return OpLinearQuantizerConfig(
        mode="linear_symmetric",
        dtype=f"int{scheme.bits}",
        granularity="per_block" if grouped else f"per_{scheme.granularity}",
        block_size=int(scheme.granularity) // area if grouped else 32,
        weight_threshold=SMALLEST_WEIGHT,
    )


def by_operator(recipe: Recipe) -> Compression:
    """How weights that nobody names are compressed, those of a whole reference.

    At 4 bits its convolutions cost five times what its linear layers do (docs/full-size.md), so
    they take 8 here as they do on XNNPACK.
    """
    if recipe.weight_bits != 4:
        return Compression()
    convolution = config_of(Scheme(8, "affine", "channel"))
    kinds = dict.fromkeys(("conv", "conv_transpose"), convolution)
    return Compression(by_operator=kinds, others=config_of(uniform(recipe)))


def uniform(recipe: Recipe) -> Scheme:
    """What is requested of any layer, as far as the recipe's iOS reads it."""
    requested = recipe.scheme_of(TARGET, "")
    if requested.form == "palette" and recipe.ios < MODERN_IOS:
        return replace(requested, granularity="tensor")
    return replace(requested, activations="float") if requested.bits == 4 else requested
