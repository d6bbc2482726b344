"""Every combination of the recipe table is taken by every target as it is, or with the reason; what
is taken is written, stands in the file, and runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pocketfocus.export.network import Calls, Network
from pocketfocus.export.phases import Phases
from pocketfocus.export.targets import TARGETS, get_target, left_out
from pocketfocus.mobile_harness.mil import program_opener
from pocketfocus.quantize.plan import Choice
from pocketfocus.quantize.recipes import Recipe, Rule, Scheme, recipe_from
from pocketfocus.quantize.toolchains import TOOLCHAINS
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import TensorSpec
from pocketfocus.run.metrics import psnr

WIDTH, HIDDEN, SIDE = 28, 64, 8  # seven is a part of 28, and no power of two
LEAST_DB = 15  # what 4 bits in all layers leave; nonsense has 0
HERE = [name for name in TARGETS if name not in left_out()]


class Block(nn.Module):
    """A convolution, one that is linear at every pixel, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(WIDTH, HIDDEN, 3, padding=1)
        self.pixels = nn.Conv2d(HIDDEN, HIDDEN, 1)
        self.linear = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pixels(torch.relu(self.first(x)))
        row = self.linear(y.mean((2, 3))[:, None])  # [B,1,C]: of [B,C] ONNX makes another operator
        return x + row.transpose(1, 2)[..., None]


class Rows(nn.Module):
    """A linear layer for every pixel, as attention has them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


def tiny(blocks: int = 1, rows: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    last = [Rows()] if rows else []
    return nn.Sequential(*(Block() for _ in range(blocks)), *last).eval()


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
    return TOOLCHAINS[target].choices(recipe, tiny())


def test_the_table() -> None:
    assert len(accepted()) == 2 * (5 * 3 + 5) + 2


@pytest.mark.parametrize("target", TARGETS)
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


def together(target: str, ios: int, rows: bool) -> tuple[Recipe, int]:
    """As one recipe every row of which the target makes something new for a layer, each for a block
    of its own, and how many these are; and ranges found at run time for `Rows`."""
    known: set[tuple[str, Scheme]] = set()
    rules: list[Rule] = []
    for recipe in accepted():
        made = schemes_of(target, recipe.model_copy(update={"ios": ios}))
        if recipe.weight_bits < 16 and made - known:
            rules.append(recipe.rules[0].model_copy(update={"layers": f"{len(rules)}.*"}))
            known |= made
    last = Rule.of(f"{len(rules)}.*", Scheme(8, "affine", "channel", "dynamic"))
    about = {"name": "mine", "min_psnr_db": 10, "ios": ios}
    found = Recipe.model_validate(about | {"rules": [*rules, *([last] if rows else [])]})
    return found, len(rules)


def schemes_of(target: str, recipe: Recipe) -> set[tuple[str, Scheme]]:
    """What the target makes of a recipe, by the kind of layer."""
    return {(name, choice.scheme) for name, choice in chosen(target, recipe).items()}


def written(
    target: str, recipe: Recipe, make: Callable[[], nn.Module], path: Path
) -> tuple[dict[str, Any], float]:
    """The schemes of a file's layers, and how near its output (in dB) is to the network's."""
    torch.manual_seed(1)
    photo = torch.rand(1, WIDTH, SIDE, SIDE) * 2 - 1
    shape = tuple(photo.shape)
    given, made = (TensorSpec(n, shape, "float32", (-1.0, 1.0)) for n in ("photo", "stack"))
    calls: Calls = [(photo,), (photo.flip(2),)]
    network = Network("tiny", make, (given,), (made,), lambda: calls)
    chosen = get_target(target)
    chosen.write(network, recipe, path, Phases("tiny", chosen.phases, lambda line: None))
    opened = opener(target)(path)
    with torch.no_grad():
        right = make()(photo)
        return dict(chosen.read(path, network)), psnr(opened(photo)[0], right)


def opener(target: str) -> Callable[[Path], Callable[..., tuple[Tensor, ...]]]:
    """What executes files of a target on any machine."""
    if target == "coreml":
        return lambda path: program_opener()(str(path), 1)
    if target == "coreai":
        from pocketfocus.export.coreai.write import open_file

        return open_file
    return lambda path: get_target(target).open(path, 1)


@pytest.mark.timeout(900)  # on a machine that does other things too
@pytest.mark.parametrize(("target", "ios"), [*((name, 18) for name in HERE), ("coreml", 17)])
def test_what_is_taken_is_written_and_runs(target: str, ios: int, tmp_path: Path) -> None:
    rows = target != "coreai"  # which takes students only, and these have no such layers
    recipe, blocks = together(target, ios, rows)
    path = tmp_path / f"tiny{get_target(target).suffix}"
    found, db = written(target, recipe, lambda: tiny(blocks, rows), path)
    planned = TOOLCHAINS[target].choices(recipe, tiny(blocks, rows))
    assert found == {name: choice.scheme for name, choice in planned.items()}
    assert db > LEAST_DB
