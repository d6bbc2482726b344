"""Every combination of the recipe table is taken by every target as it is, or with the reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

from pocketfocus.quantize.plan import Choice
from pocketfocus.quantize.recipes import Recipe, recipe_from
from pocketfocus.quantize.toolchains import coreml, executorch, onnx
from pocketfocus.run.errors import UserError

WIDTH = 56  # seven is a part of 56, and no power of two
CHOICES = {"executorch": executorch.choices, "coreml": coreml.choices, "onnx": onnx.choices}


class Tiny(nn.Module):
    """A convolution, one that is linear at every pixel, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.pixels = nn.Conv2d(WIDTH, 64, 1)
        self.linear = nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pixels(torch.relu(self.first(x)))
        y: Tensor = self.linear(x.permute(0, 2, 3, 1))
        return y


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().eval()


def table() -> Iterator[dict[str, object]]:
    """Every row that YAML can hold, with some groups."""
    forms, activations = ("affine", "palette"), ("float", "static", "dynamic")
    for row in itertools.product((4, 8), forms, ("tensor", "channel", 1, 7, 32), activations):
        yield dict(zip(("bits", "form", "granularity", "activations"), row, strict=True))
    for bits in (16, 32):
        yield {"bits": bits}


def accepted() -> list[Recipe]:
    """The recipes of the table that are not refused at once; of those the reason is said."""
    found = []
    for row in table():
        try:
            content = {"name": "mine", "min_psnr_db": 10, "rules": [{"layers": "*", **row}]}
            found.append(recipe_from(content, "mine.yaml"))
        except UserError as error:
            assert "no target takes" in str(error)
    return found


def chosen(target: str, recipe: Recipe) -> dict[str, Choice]:
    return CHOICES[target](recipe, tiny())


def test_the_table() -> None:
    assert len(accepted()) == 2 * (5 * 3 + 5) + 2


@pytest.mark.parametrize("target", CHOICES)
def test_what_is_taken_instead_has_a_reason(target: str) -> None:
    for recipe in accepted():
        for choice in chosen(target, recipe).values():
            same = asdict(choice.scheme) == asdict(recipe.rules[0].scheme)
            assert same or choice.why, (target, recipe.rules[0], choice)


def test_xnnpack_gets_whole_groups_only() -> None:
    """Of any other size it stops while the file is written."""
    for recipe in accepted():
        for name, choice in chosen("executorch", recipe).items():
            if choice.scheme.bits == 4:
                inputs = tiny().get_submodule(name).get_parameter("weight").shape[1]
                group = choice.scheme.granularity
                assert (inputs if group == "channel" else int(group)) % 32 == 0, choice
