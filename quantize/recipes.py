"""The precisions as data: what is asked of every toolchain, and the gate its file has to pass.

What a toolchain takes instead is written into the manifest (`Artifact.taken`), never here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pocketfocus.errors import UserError

FloatType = Literal["float32", "float16"]
Activations = Literal["float", "int8"]


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
    """

    name: str
    weight_bits: int
    activations: Activations
    float_dtype: FloatType
    group_size: int
    min_psnr_db: float

    @property
    def calibrated(self) -> bool:
        """Whether it needs real inputs to find the ranges of activations."""
        return self.activations != "float"


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", 32, "float", "float32", 0, 80.0),
        Recipe("fp16", 16, "float", "float16", 0, 50.0),
        Recipe("int8", 8, "int8", "float32", 0, 40.0),
        Recipe("int4", 4, "int8", "float32", 32, 35.0),
    )
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; UserError names the known ones."""
    if name not in RECIPES:
        raise UserError(f"unknown precision '{name}': choose from {', '.join(RECIPES)}")
    return RECIPES[name]
