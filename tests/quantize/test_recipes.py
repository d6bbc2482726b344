"""Recipes and calibration inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pocketfocus.errors import UserError
from pocketfocus.quantize.calibration import calibration
from pocketfocus.quantize.recipes import RECIPES, get_recipe
from pocketfocus.scenes import HELD_OUT_PHOTOS, TRAIN_PHOTOS


def test_the_gates_are_those_of_the_design() -> None:
    gates = {name: recipe.min_psnr_db for name, recipe in RECIPES.items()}
    assert gates == {"fp32": 80.0, "fp16": 50.0, "int8": 40.0, "int4": 35.0}
    assert [r.weight_bits for r in RECIPES.values()] == [32, 16, 8, 4]
    assert [r.calibrated for r in RECIPES.values()] == [False, False, True, True]


def test_unknown_precision() -> None:
    with pytest.raises(UserError, match="unknown precision 'int5': choose from fp32, fp16"):
        get_recipe("int5")


def test_bundled_photos_at_every_position() -> None:
    inputs = calibration((32, 32))
    assert len(inputs) == len(list(inputs)) == 18
    described = inputs.describe()
    assert sorted(described["positions"]) == sorted([*range(9)] * 2)
    assert set(described["photos"]) == set(TRAIN_PHOTOS)
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
    assert len(used) == min(count, 18)
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
