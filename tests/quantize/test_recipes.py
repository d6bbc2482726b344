"""Recipes and calibration inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from pocketfocus.data.hard import CALIBRATING
from pocketfocus.data.scenes import HELD_OUT_PHOTOS, TRAIN_PHOTOS
from pocketfocus.quantize.calibration import calibration
from pocketfocus.quantize.recipes import (
    RECIPES,
    TOOLCHAIN_NAMES,
    Recipe,
    Rule,
    Scheme,
    get_recipe,
    recipe_from,
    to_yaml,
)
from pocketfocus.quantize.toolchains.coreml import adapted
from pocketfocus.run.errors import UserError


def test_the_gates_are_those_of_the_design() -> None:
    gates = {name: recipe.min_psnr_db for name, recipe in RECIPES.items()}
    assert gates == {"fp32": 80.0, "fp16": 50.0, "int8": 40.0, "int4": 35.0, "mixed": 35.0}
    assert [r.weight_bits for r in RECIPES.values()] == [32, 16, 8, 4, 4]
    assert [r.calibrated for r in RECIPES.values()] == [False, False, True, True, True]


def test_a_rule_may_name_every_target() -> None:
    from pocketfocus.export.targets import TARGETS, get_targets

    assert set(TARGETS) == set(TOOLCHAIN_NAMES) == {t.toolchain for t in get_targets()}


def test_unknown_precision() -> None:
    with pytest.raises(UserError, match="unknown precision 'int5': choose from fp32, fp16"):
        get_recipe("int5")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_through_yaml_and_json(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name].model_copy(update={"name": "mine"})
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert get_recipe(str(path)) == recipe
    assert recipe_from(json.loads(json.dumps(recipe.model_dump(mode="json"))), "json") == recipe


def test_the_last_rule_that_fits_decides() -> None:
    rules = (
        Rule.of("*", Scheme(8, "affine", "channel", "static")),
        Rule.of("encoder.*", Scheme(4, "affine", 32, "dynamic")),
        Rule.of(r"regex:.*\.\d\.conv", Scheme(16), ["coreml"]),
    )
    recipe = Recipe(name="mine", min_psnr_db=30, rules=rules)
    bits = {
        (target, layer): recipe.scheme_of(target, layer).bits
        for target in ("onnx", "coreml")
        for layer in ("head", "encoder.0.up", "encoder.0.conv", "encoder.conv")
    }
    assert list(bits.values()) == [8, 4, 4, 4, 8, 4, 16, 4]
    lone = Recipe(name="lone", min_psnr_db=30, rules=rules[1:2])
    assert lone.scheme_of("onnx", "head") == Scheme(32)


def test_a_pattern_that_fits_no_layer() -> None:
    rules = (Rule.of("tail.*", Scheme(16), ["coreml"]),)
    recipe = Recipe(name="mine", min_psnr_db=30, rules=rules)
    with pytest.raises(UserError, match=r"mine: the pattern 'tail\.\*' fits none of .* 2 layers"):
        recipe.requested("onnx", ["head", "body"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"speed": 1}, "unknown key 'speed': choose from name, about"),
        ({"rules": [{"bits": 8, "groups": 4}]}, "rule 1: unknown key 'groups': choose from layers"),
        ({"rules": [{"bits": 3}]}, "rule 1: 'bits' is 3: choose 32, 16, 8 or 4"),
        ({"rules": [{"bits": True}]}, "'bits' is True: choose 32"),
        ({"rules": [{"layers": "*"}]}, "rule 1: 'bits' is missing: choose 32, 16, 8 or 4"),
        ({"rules": []}, "'rules' is []: choose a list of one rule or more"),
        ({"rules": [{"bits": 4, "form": "tree"}]}, "'form' is 'tree': choose affine or palette"),
        (
            {"rules": [{"bits": 4, "granularity": 0}]},
            "'granularity' is 0: choose tensor, channel, or a whole",
        ),
        (
            {"rules": [{"bits": 8, "activations": "int8"}]},
            "'activations' is 'int8': choose float, static or dynamic",
        ),
        (
            {"rules": [{"bits": 8, "targets": ["tvm"]}]},
            f"'targets' is 'tvm': choose {' or '.join(TOOLCHAIN_NAMES)}",
        ),
        ({"rules": [{"bits": 8, "targets": 5}]}, "'targets' is 5: choose coreai or coreml"),
        ({"rules": [{"bits": 8, "layers": "regex:("}]}, "no regular expression"),
        ({"rules": [{"bits": 16, "form": "palette"}]}, "no target takes 16-bit weights"),
        (
            {"rules": [{"bits": 4, "form": "palette", "activations": "static"}]},
            "no target takes palettes with static int8 activations",
        ),
        ({"min_psnr_db": "high"}, "'min_psnr_db' is 'high': choose a number from 0 up"),
        ({"name": "../up"}, "'name' is '../up': choose letters, digits"),
        ({"name": "int8"}, "the name 'int8' is a shipped recipe's"),
        ({"ios": 12}, "'ios' is 12: choose 17 or 18"),
    ],
)
def test_a_wrong_recipe_is_one_line(edit: dict[str, Any], message: str, tmp_path: Path) -> None:
    fields = {"name": "mine", "min_psnr_db": 30, "rules": [{"bits": 8}], **edit}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        get_recipe(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", ""])
def test_what_is_no_recipe_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"wrong\.yaml is no (YAML|mapping)"):
        get_recipe(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        get_recipe(str(tmp_path / "none.yaml"))


def test_forms_of_4_bit_weights_for_core_ml() -> None:
    blocks = adapted(RECIPES["int4"], {"ios": 18, "form": "blocks"})
    assert blocks.scheme_of("coreml", "head") == Scheme(4, "affine", 32)
    assert blocks.scheme_of("onnx", "head") == RECIPES["int4"].scheme_of("onnx", "head")
    assert adapted(RECIPES["int4"], {}) == RECIPES["int4"]
    palettes = adapted(RECIPES["int8"], {"ios": "17", "form": "palettes"})
    assert (palettes.rules, palettes.ios) == (RECIPES["int8"].rules, 17)
    with pytest.raises(UserError, match="iOS 17 cannot read 4-bit blocks"):
        adapted(RECIPES["int4"], {"ios": 17, "form": "blocks"})
    with pytest.raises(UserError, match="iOS 12: choose from 17, 18"):
        adapted(RECIPES["int4"], {"ios": 12})
    with pytest.raises(UserError, match="unknown form of 4-bit weights 'trees': choose from pal"):
        adapted(RECIPES["int4"], {"form": "trees"})


def test_bundled_photos_at_every_position() -> None:
    inputs = calibration((32, 32))
    assert len(inputs) == len(list(inputs)) == 24
    described = inputs.describe()
    assert sorted(described["positions"][:18]) == sorted([*range(9)] * 2)
    assert described["inputs_at_position"] == [2, 2, 5, 2, 2, 2, 2, 5, 2]
    drawn = {f"{name} (drawn)" for name in CALIBRATING}
    assert set(described["photos"][:18]) == set(TRAIN_PHOTOS)
    assert set(described["photos"][18:]) == drawn
    assert set(described["photo_sha256"]) == {*TRAIN_PHOTOS, *drawn}
    assert len(set(described["photo_sha256"].values())) == len(TRAIN_PHOTOS) + len(drawn)
    assert not set(described["photos"]) & set(HELD_OUT_PHOTOS)
    for (photo, position), expected in zip(inputs, described["positions"], strict=True):
        assert photo.shape == (1, 3, 32, 32)
        assert -1 <= photo.min() < photo.max() <= 1
        assert position.shape == (1, 9)
        assert position.argmax() == expected


@pytest.mark.parametrize("count", [1, 2, 9, 25])
def test_photos_of_the_user(count: int, tmp_path: Path) -> None:
    paths = []
    for index in range(count):
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", (40, 30), (index * 10, 0, 255)).save(paths[-1])
    inputs = calibration((16, 16), paths)
    assert set(inputs.describe()["positions"]) == set(range(9))
    used = set(inputs.describe()["photos"])
    assert len(used) == min(count, 18) + len(CALIBRATING)
    assert {paths[0].name, paths[-1].name} <= used
    first, _ = next(iter(inputs))
    assert torch.equal(first[0, :, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))


def test_the_hash_follows_pixels_and_positions(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(path)
    red = calibration((32, 32), [path]).sha256
    assert calibration((32, 32), [path]).sha256 == red
    assert calibration((32, 32), [path], inputs=9).sha256 != red
    Image.new("RGB", (32, 32), "green").save(path)
    assert calibration((32, 32), [path]).sha256 != red


def test_no_photo_or_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no photo to calibrate with"):
        calibration((32, 32), [])
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(UserError, match=r"a\.png"):
        calibration((32, 32), [tmp_path / "a.png"])


BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "alias"),
        ("a: &a [*a]", "alias"),
        ("[" * 20_000, "no YAML"),
        ("name: 2026-99-99", "no YAML"),
        ("min_psnr_db: " + "9" * 5000, "no YAML"),
        ("# " + "x" * 1_000_001, "1,000,000 bytes"),
    ],
    ids=["bomb", "itself", "deep", "a date", "digits", "long"],
)
def test_what_would_eat_memory_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        get_recipe(str(tmp_path / "bomb.yaml"))


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    text = "name: mine\nmin_psnr_db: 30\nrules: [{bits: 8}]\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8-sig")
    assert get_recipe(str(tmp_path / "mine.yaml")).name == "mine"
