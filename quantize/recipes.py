"""The precisions as data: what is asked of every toolchain, and the gate its file has to pass.

What a toolchain takes instead is written into the manifest (`Artifact.taken`), never here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pocketfocus.errors import UserError

FloatType = Literal["float32", "float16"]
Activations = Literal["float", "int8"]
Form = Literal["palettes", "blocks"]

IOS_VERSIONS = (17, 18)
FORMS: dict[Form, tuple[int, str]] = {
    "palettes": (17, "16 values found by k-means, which every weight is an index of"),
    "blocks": (18, "4-bit integers, one scale for every 32 weights of a channel"),
}
"""How Core ML keeps 4-bit weights: the oldest iOS that reads it, and what it is."""


@dataclass(frozen=True)
class Recipe:
    """One precision.

    Attributes:
        name: by which users choose it.
        weight_bits: of the convolution and linear weights; 32 and 16 are floating point.
        activations: `float`, or `int8` where the toolchain can.
        float_dtype: of whatever is not quantized.
        group_size: weights that share one scale (4 bits only; 0 = one scale a channel).
        min_psnr_db: the gate against the parent (design §6).
        min_delegated: least share of an ExecuTorch file's operators that its backend executes.
        ios: the oldest iOS that has to read the Core ML file.
        form: of 4-bit weights in it, a key of `FORMS`.
    """

    name: str
    weight_bits: int
    activations: Activations
    float_dtype: FloatType
    group_size: int
    min_psnr_db: float
    min_delegated: float
    ios: int = 18
    form: Form = "palettes"

    @property
    def calibrated(self) -> bool:
        """Whether it needs real inputs to find the ranges of activations."""
        return self.activations != "float"


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", 32, "float", "float32", 0, 80.0, 0.99),
        Recipe("fp16", 16, "float", "float16", 0, 50.0, 0.8),
        Recipe("int8", 8, "int8", "float32", 0, 40.0, 0.99),
        Recipe("int4", 4, "int8", "float32", 32, 35.0, 0.99),
    )
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; UserError names the known ones."""
    if name not in RECIPES:
        raise UserError(f"unknown precision '{name}': choose from {', '.join(RECIPES)}")
    return RECIPES[name]


def for_ios(recipe: Recipe, ios: int, form: str) -> Recipe:
    """The recipe with Core ML's deployment target and form of 4-bit weights.

    UserError for unknown ones, or a form that this iOS does not read.
    """
    if ios not in IOS_VERSIONS:
        known = ", ".join(map(str, IOS_VERSIONS))
        raise UserError(f"no Core ML file is written for iOS {ios}: choose from {known}")
    known_form = next((name for name in FORMS if name == form), None)
    if known_form is None:
        raise UserError(f"unknown form of 4-bit weights '{form}': choose from {', '.join(FORMS)}")
    oldest, _ = FORMS[known_form]
    if ios < oldest:
        others = [name for name, (least, _) in FORMS.items() if least <= ios]
        raise UserError(
            f"iOS {ios} cannot read 4-bit {form}, which came with iOS {oldest}: choose "
            f"--four-bit {others[0]}, or --ios {oldest}"
        )
    return replace(recipe, ios=ios, form=known_form)
