"""What is planned of a recipe, and how a file's layers are told apart."""

from __future__ import annotations

import pytest
from torch import nn

from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.plan import (
    ONE_FLOAT,
    UNPLANNED,
    Choice,
    by_layer,
    matched,
    plan,
    statement,
    summary,
)
from pocketfocus.quantize.recipes import Recipe, Rule, Scheme
from pocketfocus.quantize.toolchains import coreml, onnx

INT8 = Scheme(8, "affine", "channel", "static")


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(32, 8, 3), nn.Hardswish(), nn.Linear(64, 16))


def test_floats_are_of_one_type() -> None:
    rules = (Rule.of("0", Scheme(16)), Rule.of("2", INT8))
    recipe = Recipe(name="mine", min_psnr_db=30, rules=rules)
    found = plan(recipe, "onnx", network(), onnx.choose)
    assert found == {"0": Choice(Scheme(32), ONE_FLOAT), "2": Choice(INT8)}


def test_a_statement_says_what_differs_and_why() -> None:
    asked = {"a": INT8, "b": INT8, "c": INT8}
    choices = {"a": Choice(INT8), "b": Choice(Scheme(16), "too small"), "c": Choice(INT8)}
    rows = statement(asked, choices, {"a": INT8, "b": Scheme(16), "c": Scheme(32)})
    assert rows["a"] == {
        "bits": 8,
        "form": "affine",
        "granularity": "channel",
        "activations": "static",
    }
    assert (rows["b"]["bits"], rows["b"]["why"]) == (16, "too small")
    assert rows["b"]["asked"] == "8 bits, per-channel scale, static activations"
    assert (rows["c"]["bits"], rows["c"]["why"]) == (32, UNPLANNED)
    assert summary({"a": INT8, "b": Scheme(16), "c": INT8}).endswith("; 1 layers: float16")


def test_layers_are_matched_by_order_and_size() -> None:
    order = [("a", 8), ("", 3), ("b", 8), ("c", 5)]
    assert matched(order, [8, 5, 8, 3], "it") == ["a", "c", "b", ""]
    found = by_layer(order, [(INT8, 8), (Scheme(), 3), (Scheme(16), 8), (INT8, 5)], "it")
    assert found == {"a": INT8, "b": Scheme(16), "c": INT8}
    with pytest.raises(RuntimeError, match="it has an operator of 4 weights"):
        matched(order, [8, 4], "it")
    with pytest.raises(RuntimeError, match="it has no operator for one of 3 weights, b, c"):
        matched(order, [8], "it")


@pytest.mark.parametrize(
    ("asked", "ios", "taken"),
    [
        (INT8, 18, [INT8, INT8]),
        (Scheme(8, "affine", "channel", "dynamic"), 18, [INT8, INT8]),
        (
            Scheme(4, "palette", 8),
            18,
            [Scheme(4, "palette", "tensor"), Scheme(4, "palette", 8)],
        ),
        (Scheme(4, "palette", 8), 17, [Scheme(4, "palette", "tensor")] * 2),
        (Scheme(4, "affine", 32), 18, [Scheme(4, "affine", "channel"), Scheme(4, "affine", 32)]),
        (Scheme(4, "affine", 16), 18, [Scheme(4, "affine", 16 * 9), Scheme(4, "affine", 16)]),
        (Scheme(4, "affine", 32), 17, [Scheme(4, "palette", "tensor")] * 2),
        (Scheme(4, "palette", 12), 18, [Scheme(16), Scheme(16)]),
    ],
)
def test_what_core_ml_takes(asked: Scheme, ios: int, taken: list[Scheme]) -> None:
    rules = (Rule.of("*", asked),)
    recipe = Recipe.model_validate({"name": "mine", "min_psnr_db": 30, "rules": rules, "ios": ios})
    found = coreml.choices(recipe, network())
    assert [choice.scheme for choice in found.values()] == taken
    for choice in found.values():
        assert bool(choice.why) == (choice.scheme != asked)


def test_layers_are_convolutions_and_products() -> None:
    assert list(layers_of(network())) == ["0", "2"]
