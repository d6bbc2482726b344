"""Sensitivity of a small student, and the recipe that is made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pocketfocus.cli import main
from pocketfocus.models.student import RefocusStudent, load_student
from pocketfocus.quantize import sensitivity
from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.mixed import Point, choose_point, path, recipe_of
from pocketfocus.quantize.recipes import TOOLCHAIN_NAMES, Recipe, get_recipe
from pocketfocus.quantize.sensitivity import CANDIDATES, INT8, Sensitivity, applied_by, measure
from pocketfocus.quantize.toolchains.executorch import linear_inputs
from pocketfocus.run.errors import UserError
from pocketfocus.run.rows import read_rows


@pytest.fixture(scope="module")
def run(small_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a measured student."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(small_student, folder / "student")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "PHOTOS", 1)
        patch.setattr(sensitivity, "POSITIONS", (4,))
        measure(folder)
    return folder


@pytest.fixture(scope="module")
def rows(run: Path) -> list[Sensitivity]:
    return read_rows(run / "sensitivity.json", Sensitivity)


@pytest.fixture(scope="module")
def student(run: Path) -> RefocusStudent:
    return load_student(run / "student")


UNSEEN = {  # they tell of the photo, or of what is finer than it; no image shows them
    "network.detail",
    "network.dioptres",
    "network.position",
}


def test_every_layer_has_its_figure_and_fewer_bits_cost_more(
    rows: list[Sensitivity], student: RefocusStudent
) -> None:
    assert {row.layer for row in rows} == set(layers_of(student))
    by = {(row.layer, row.scheme): row.mse for row in rows}
    for layer in layers_of(student):
        for target in TOOLCHAIN_NAMES:
            tables = [applied_by(target, requested, student)[layer] for requested in CANDIDATES]
            found = [by[layer, scheme] for scheme in tables if scheme.bits < 16]
            assert all((mse > 0) == (layer not in UNSEEN) for mse in found)
    low = [mse for (_, scheme), mse in by.items() if scheme.bits == 4]
    high = [mse for (_, scheme), mse in by.items() if scheme.bits == 8]
    assert sum(low) / len(low) > sum(high) / len(high)


def test_an_interrupted_measurement_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "PHOTOS", 1)
    monkeypatch.setattr(sensitivity, "POSITIONS", (4,))
    copied = shutil.copytree(run, tmp_path / "run")
    content = json.loads((copied / "sensitivity.json").read_text())
    whole = content["rows"]
    content["rows"] = [{**row, "mse": 7.0} for row in whole[:-1]]
    (copied / "sensitivity.json").write_text(json.dumps(content))
    found = measure(copied)
    assert [row.mse for row in found[:-1]] == [7.0] * (len(whole) - 1)  # kept, not redone
    assert found[-1].as_json() == whole[-1]
    monkeypatch.setattr(sensitivity, "POSITIONS", (5,))  # another question: all anew
    layer = whole[0]["layer"]
    monkeypatch.setattr(sensitivity, "schemes_to_try", lambda _: [(layer, INT8)])
    assert [row.layer for row in measure(copied)] == [layer]


@pytest.mark.parametrize("target", TOOLCHAIN_NAMES)
def test_a_path_shrinks_and_ends_where_the_target_does(
    target: str, rows: list[Sensitivity], student: RefocusStudent
) -> None:
    points = path(target, student, rows)
    sizes = [point.bytes for point in points]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    weights = sum(layer.get_parameter("weight").numel() for layer in layers_of(student).values())
    assert sizes[0] >= weights * (2 if target in ("coreml", "coreai") else 4)
    assert all(points[-1].requested[name].bits >= 8 for name in UNSEEN)
    if target == "executorch":  # no 4-bit convolution is worth asking for
        requested = points[-1].requested
        convolutions = [n for n, m in layers_of(student).items() if not linear_inputs(m)]
        assert {requested[name] for name in convolutions} == {INT8}
    with pytest.raises(UserError, match="was not measured"):
        path(target, student, rows[:2])


def test_the_point_that_is_wanted() -> None:
    points = [Point({}, 9e6, 200.0), Point({}, 4e6, 45.0), Point({}, 2e6, 33.0)]
    assert choose_point(points, "onnx", 40, None) is points[1]
    assert choose_point(points, "onnx", None, 4.5) is points[1]
    assert choose_point(points, "onnx", 30, 4.5) is points[2]
    with pytest.raises(UserError, match=r"reach 40 dB and 3 MB: the smallest has 2\.00 MB and 33"):
        choose_point(points, "onnx", 40, 3)


def test_a_recipe_names_layers_and_targets_that_differ() -> None:
    int4 = CANDIDATES[1]
    chosen = {
        "executorch": Point({"a": INT8, "b": int4}, 2e6, 38.0),
        "onnx": Point({"a": int4, "b": int4}, 1e6, 36.5),
    }
    recipe = recipe_of("lean", chosen)
    for target, point in chosen.items():
        assert recipe.requested(target, ["a", "b"]) == point.requested
    assert recipe.min_psnr_db == 35.5


def test_the_commands(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sensitivity, "PHOTOS", 1)
    monkeypatch.setattr(sensitivity, "POSITIONS", (4,))
    assert main(["sensitivity", str(run)]) == 0
    assert (run / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    lean = tmp_path / "lean.yaml"
    assert main(["mixed", str(run), "--min-db", "30", "--recipe", str(lean)]) == 0
    recipe: Recipe = get_recipe(str(lean))
    assert recipe.name == "lean"
    recipe.requested("onnx", layers_of(load_student(run / "student")))
    assert (run / "pareto.png").stat().st_size > 1000
    capsys.readouterr()
    for words, message in (
        (["--recipe", str(lean)], "--min-db, --max-mb, or both"),
        (["--min-db", "30", "--recipe", str(tmp_path / "a.txt")], "is no name for a recipe"),
        (["--min-db", "30", "--recipe", str(tmp_path / "int8.yaml")], "a shipped recipe's"),
        (["--max-mb", "0.000001", "--recipe", str(lean)], "the smallest has"),
    ):
        assert main(["mixed", str(run), *words]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
