"""Evaluation, with models and stacks whose score is known beforehand."""

import json
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from pocketfocus.benchmarks import evaluate, scores
from pocketfocus.benchmarks.baselines import COPIES
from pocketfocus.benchmarks.charts import grids_chart
from pocketfocus.benchmarks.evaluate import ROUNDING_DB, Comparison, evaluate_models
from pocketfocus.benchmarks.evaluation import read_evaluation
from pocketfocus.benchmarks.scores import Call, Ledger, Score
from pocketfocus.benchmarks.tables import print_table
from pocketfocus.benchmarks.truth import frames_by_position
from pocketfocus.data.stacks import FocalStack, StackFolder
from pocketfocus.models.model import Model, refocus, resized
from pocketfocus.photos.focusmap import box
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, write_json
from pocketfocus.run.metrics import psnr, ssim, vif
from pocketfocus.run.rows import write_rows

WHOLE = tuple(map(float, range(9)))


class Constant(Model):
    """Makes grey stacks of one value; keeps the shapes it was given."""

    def __init__(
        self, value: float = 0.0, name: str = "constant", size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(name, size, self.made)
        self.value = value
        self.seen: list[tuple[int, ...]] = []

    def made(self, photo: Tensor, position: int) -> Tensor:
        self.seen.append(tuple(photo.shape))
        return torch.full((9, *photo.shape[1:]), self.value)


def echo(size: tuple[int, int] | None = None) -> Model:
    """Repeats what it is given, at a static size or at multiples of 64."""
    return Model("echo", size, lambda photo, _: photo.expand(9, -1, -1, -1))


def greys(
    values: Sequence[float], positions: Sequence[float] = WHOLE, side: int = 16
) -> FocalStack:
    """One uniform frame a value."""
    frames = torch.stack([torch.full((3, side, side), float(value)) for value in values])
    return FocalStack("greys", frames, tuple(positions))


def textured(seed: int, height: int = 24, width: int = 24) -> FocalStack:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(9, 3, height, width, generator=generator) * 1.6 - 0.8
    return FocalStack(f"textured-{seed}", frames, WHOLE)


def decibels(error: float) -> float:
    return 20 * math.log10(2 / error)


Row = dict[str, Any]


def evaluated(*arguments: Any, **options: Any) -> list[Row]:
    """The rows of an evaluation, as its file has them."""
    return [row.as_json() for row in evaluate_models(*arguments, **options).rows()]


def cells(rows: Sequence[Row]) -> dict[tuple[str, int, int], Row]:
    return {
        (row["model"], row["input_position"], row["output_position"]): row
        for row in rows
        if "input_position" in row
    }


def means(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["model"]: row for row in rows if "mean_psnr_db" in row}


def test_copy_on_a_ramp_of_greys_depends_on_the_distance_alone() -> None:
    stack = greys([0.1 * n - 0.4 for n in range(9)])
    rows = evaluated([COPIES], [stack], "ramp")
    found = cells(rows)
    assert len(found) == 81
    assert set(found["copy", 2, 5]) == {
        "model", "stacks", "input_position", "output_position", "psnr_db", "ssim",
        "sharper_gain_db", "restored", "pooled_psnr_db",
    }  # fmt: skip
    assert found["copy", 2, 5]["psnr_db"] == pytest.approx(decibels(0.3), abs=1e-4)
    assert found["copy", 7, 7]["psnr_db"] == ROUNDING_DB
    summary = means(rows)["copy"]
    for d in range(1, 9):
        by_distance = summary["psnr_db_by_distance"][str(d)]
        assert by_distance == pytest.approx(decibels(0.1 * d), abs=1e-4)
    off = [decibels(0.1 * d) for d in range(1, 9) for _ in range(2 * (9 - d))]
    assert summary["mean_psnr_db_off_diagonal"] == pytest.approx(sum(off) / 72, abs=1e-4)
    everything = (sum(off) + 9 * ROUNDING_DB) / 81
    assert summary["mean_psnr_db"] == pytest.approx(everything, abs=1e-4)


def test_cells_are_means_of_images_and_beside_them_of_pooled_errors() -> None:
    """The first is ours, the second that of Learn2Refocus."""
    stacks = [greys([0.1] * 9), greys([0.4] * 9)]
    rows = evaluated([Constant(0.0)], stacks, "two")
    expected = (decibels(0.1) + decibels(0.4)) / 2
    assert cells(rows)["constant", 0, 8]["psnr_db"] == pytest.approx(expected, abs=1e-4)
    error = (0.1**2 + 0.4**2) / 2
    assert cells(rows)["constant", 0, 8]["pooled_psnr_db"] == pytest.approx(decibels(error**0.5))
    assert means(rows)["constant"]["scenes"] == 2
    found = means(rows)["constant"]["pooled_psnr_db_off_diagonal"]
    assert found == pytest.approx(decibels(error**0.5), abs=1e-4)


def test_ssim_is_per_image() -> None:
    stacks = [textured(0), textured(1)]
    rows = evaluated([COPIES], stacks, "noise", Comparison([3]))
    both = [ssim(stack.frames[3:4], stack.frames[6:7]) for stack in stacks]
    assert cells(rows)["copy", 3, 6]["ssim"] == pytest.approx(sum(both) / 2)
    ssims = [row["ssim"] for (_, i, o), row in cells(rows).items() if i != o]
    assert means(rows)["copy"]["mean_ssim_off_diagonal"] == pytest.approx(sum(ssims) / 8)


def test_inputs_limit_the_rows_and_the_calls() -> None:
    model = Constant()
    rows = evaluated([model], [textured(0)], "noise", Comparison((0, 8)))
    assert {key[1] for key in cells(rows)} == {0, 8}
    assert len(model.seen) == 2


def test_only_frames_near_a_whole_position_are_truth() -> None:
    stack = greys([0, 0.1, 0.2, 0.3, 0.4], [0.2, 1.5, 2.9, 3.1, 7.75])
    truth = frames_by_position(stack)
    assert {p: round(float(frame.mean()), 3) for p, frame in truth.items()} == {
        0: 0.0,
        3: 0.2,  # 2.9 and 3.1 are equally near up to rounding: the first of them
        8: 0.4,
    }
    assert float(frames_by_position(greys([0.1, 0.2], [4.2, 4.24]))[4].mean()) == pytest.approx(0.1)
    rows = evaluated([COPIES], [stack], "sparse")
    assert {key[1:] for key in cells(rows)} == {(i, o) for i in (0, 3, 8) for o in (0, 3, 8)}
    assert sorted(means(rows)["copy"]["psnr_db_by_distance"]) == ["3", "5", "8"]


def test_two_photos_with_positions_in_a_folder_are_scored_where_truth_exists(
    tmp_path: Path,
) -> None:
    (tmp_path / "desk").mkdir()
    for name, grey in (("a.png", 100), ("b.png", 151)):
        Image.new("RGB", (16, 16), (grey,) * 3).save(tmp_path / "desk" / name)
    (tmp_path / "desk" / "positions.txt").write_text("0.2\n6.9\n")
    found = cells(evaluated([COPIES], StackFolder(tmp_path), "desk"))
    assert {key[1:] for key in found} == {(0, 0), (0, 7), (7, 0), (7, 7)}
    assert found["copy", 0, 7]["psnr_db"] == pytest.approx(decibels(2 * 51 / 255), abs=1e-4)
    (tmp_path / "desk" / "positions.txt").write_text("0.2\n6.5\n")
    alone = cells(evaluated([COPIES], StackFolder(tmp_path), "desk"))
    assert {key[1:] for key in alone} == {(0, 0)}


def test_scenes_with_other_truth_fill_other_cells() -> None:
    stacks = [greys([0.1, 0.5], [0, 1]), greys([0.1, 0.3], [0, 2])]
    found = cells(evaluated([Constant()], stacks, "mixed"))
    assert ("constant", 1, 2) not in found
    assert found["constant", 0, 1]["psnr_db"] == pytest.approx(decibels(0.5), abs=1e-4)
    assert found["constant", 0, 2]["psnr_db"] == pytest.approx(decibels(0.3), abs=1e-4)


def test_one_frame_with_truth_leaves_no_mean_off_the_diagonal(tmp_path: Path) -> None:
    found = evaluate_models([COPIES], [greys([0.1, 0.5], [3, 4.5])], "lone")
    (summary,) = found.means
    assert summary.mean_psnr_db_off_diagonal is None
    assert summary.psnr_db_by_distance == {}
    write_rows(tmp_path / "rows.json", found.rows())
    print_table(found.means, Console(file=(tmp_path / "table.txt").open("w")))
    assert grids_chart(found.cells)


def test_no_truth_at_all_is_said() -> None:
    with pytest.raises(UserError, match=r"between has no frame within 0\.25"):
        evaluated([COPIES], [greys([0, 1], [0.5, 1.5])], "between")
    with pytest.raises(UserError, match="input position in 5"):
        evaluated([COPIES], [greys([0, 1], [0, 8])], "ends", Comparison([5]))


def test_outputs_are_clamped_before_they_are_scored() -> None:
    rows = evaluated([Constant(7.0)], [greys([1.0] * 9)], "white")
    assert means(rows)["constant"]["mean_psnr_db"] == pytest.approx(ROUNDING_DB)


def test_the_cap_is_the_error_of_rounding_to_bytes() -> None:
    exact = torch.rand(1_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    error = ((exact * 255).round() / 255 - exact) * 2
    assert 10 * math.log10(4 / float((error**2).mean())) == pytest.approx(ROUNDING_DB, abs=0.01)


def test_a_static_model_gets_its_size_and_gives_back_the_photo_s() -> None:
    model = Constant(size=(32, 32))
    made = refocus(model, torch.zeros(1, 3, 48, 80), 0)
    assert model.seen == [(1, 3, 32, 32)]
    assert made.shape == (9, 3, 48, 80)
    y, x = torch.meshgrid(torch.linspace(0, 3, 48), torch.linspace(0, 3, 80), indexing="ij")
    smooth = torch.stack([torch.sin(x), torch.cos(y), torch.sin(x - y)])[None] * 0.9
    back = refocus(echo(size=(32, 32)), smooth, 0)
    assert float((back - smooth).abs().max()) < 0.05
    assert torch.equal(
        refocus(echo(size=(32, 32)), smooth[..., :32, :32], 0)[0], smooth[0, :, :32, :32]
    )


@pytest.mark.parametrize(("height", "width"), [(64, 128), (20, 100), (65, 63)])
def test_a_model_of_any_size_gets_multiples_of_64_without_resampling(
    height: int, width: int
) -> None:
    photo = textured(0, height, width).frames[:1]
    model = Constant()
    assert refocus(model, photo, 0).shape == (9, 3, height, width)
    (given,) = model.seen
    assert given[2:] == (math.ceil(height / 64) * 64, math.ceil(width / 64) * 64)
    assert torch.equal(refocus(echo(), photo, 0)[4:5], photo)


def test_models_that_break_are_named() -> None:
    stack = greys([0] * 9)
    with pytest.raises(UserError, match="constant makes values that are not finite from greys"):
        evaluated([Constant(math.nan)], [stack], "greys")

    class Short(Constant):
        def __call__(self, photo: Tensor, position: int) -> Tensor:
            return super().__call__(photo, position)[:5]

    with pytest.raises(UserError, match=r"\[5, 3, 64, 64\].*\[9, 3, 64, 64\]"):
        evaluated([Short()], [stack], "greys")
    with pytest.raises(UserError, match="share a name"):
        evaluated([COPIES, COPIES], [stack], "greys")


def test_rows_are_json_and_order_follows_the_models(tmp_path: Path) -> None:
    found = evaluate_models([Constant(), COPIES], iter([textured(0)]), "noise", Comparison([0, 4]))
    write_rows(tmp_path / "evaluate.json", found.rows())
    rows = read_json(tmp_path / "evaluate.json")["rows"]
    assert rows == json.loads(json.dumps([row.as_json() for row in found.rows()]))
    assert read_evaluation(tmp_path / "evaluate.json") == found
    for wrong in ({"artifact": "a"}, "a row", rows[0] | {"output_position": 9}):
        write_json(tmp_path / "evaluate.json", {"rows": [*rows[:2], wrong]})
        with pytest.raises(UserError, match=r"evaluate\.json, row 3, .*: delete the file"):
            read_evaluation(tmp_path / "evaluate.json")
    assert list(means(rows)) == ["constant", "copy"]
    assert [row["model"] for row in rows[:18]] == ["constant"] * 18


def test_the_table_shows_the_gain_over_copy(tmp_path: Path) -> None:
    stack = greys([0.1 * n - 0.4 for n in range(9)])
    found = evaluate_models([COPIES, Constant()], [stack], "ramp")
    with (tmp_path / "table.txt").open("w") as file:
        print_table(found.means, Console(file=file, width=80))
    lines = (tmp_path / "table.txt").read_text().splitlines()
    copied, constant = found.means
    assert copied.mean_psnr_db_off_diagonal and constant.mean_psnr_db_off_diagonal
    gain = constant.mean_psnr_db_off_diagonal - copied.mean_psnr_db_off_diagonal
    rows = {line.strip("│ ").partition("│")[0].strip(): line for line in lines}
    assert "ramp" in "".join(lines[:3])
    assert f"{gain:+.2f}" in rows["over copy"] and "+0.00" not in rows["over copy"]
    assert f"{constant.psnr_db_by_distance['8']:.1f}" in rows["d = 8"]


def refused(photo: Tensor, position: int) -> Tensor:
    raise AssertionError("it is given stacks, not photos")


TRUTH = Model("truth", None, refused, reconstruct=lambda stack: stack - 0.02)
"""Is given the stack and gives it back, a little darker."""


def test_a_reconstructor_is_given_the_true_stack() -> None:
    rows = evaluated([TRUTH, COPIES], [textured(0)], "noise", Comparison([0, 4]))
    found = cells(rows)
    for output in range(9):
        assert found["truth", 4, output]["psnr_db"] == pytest.approx(decibels(0.02), abs=1e-3)


def test_inputs_take_turns_over_the_scenes() -> None:
    stacks = [textured(seed) for seed in range(3)]
    model = Constant()
    rows = evaluated([model], stacks, "noise", Comparison(per_scene=3))
    assert len(model.seen) == 9
    assert {(row["input_position"]) for row in rows if "input_position" in row} == set(range(9))
    assert means(rows)["constant"]["scenes"] == 3


def test_the_gain_has_the_standard_error_over_scenes() -> None:
    stacks = [greys([0.1 * n - 0.4 for n in range(9)]), greys([0.05 * n for n in range(9)])]
    pairs = [evaluated([Constant(), COPIES], [stack], "one") for stack in stacks]
    gains = [means(rows)["constant"]["gain_db"] for rows in pairs]
    assert means(pairs[0])["constant"]["gain_error_db"] is None
    both = means(evaluated([Constant(), COPIES], stacks, "two"))
    assert both["constant"]["gain_db"] == pytest.approx(sum(gains) / 2)
    assert both["constant"]["gain_error_db"] == pytest.approx(abs(gains[0] - gains[1]) / 2)
    assert both["copy"]["gain_db"] == 0
    assert means(evaluated([Constant()], stacks, "two"))["constant"]["gain_db"] is None


def test_which_share_is_no_worse_than_copy_and_the_reference() -> None:
    """Of the frames -0.4, -0.3 … 0.3 of a ramp, whose photo is 0.4."""
    stack, reference = greys([0.1 * n - 0.4 for n in range(9)]), "reference:some/where@1/1"
    named = [Constant(0.01), Constant(-0.35, reference), Constant(-0.35, "twin"), COPIES]
    found = means(evaluated(named, [stack], "ramp", Comparison([8])))
    assert found["constant"]["no_worse_than_copy"] == 7 / 8  # up to 0.2
    assert found["constant"]["no_worse_than_reference"] == 5 / 8  # from -0.1
    assert found["copy"]["no_worse_than_reference"] == 3 / 8  # from 0.1
    assert found["twin"]["no_worse_than_reference"] == 1
    assert "no_worse_than_copy" not in found["copy"]
    assert "no_worse_than_reference" not in found[reference]
    alone = means(evaluated([Constant(0.01)], [stack], "ramp"))["constant"]
    assert not {"no_worse_than_copy", "no_worse_than_reference"} & set(alone)


def test_vif_is_that_of_images_off_the_diagonal() -> None:
    stack = textured(0, 48, 48)
    found = cells(rows := evaluated([COPIES], [stack], "noise", Comparison([3])))
    assert found["copy", 3, 6]["vif"] == vif(stack.frames[3:4], stack.frames[6:7])
    off = [row["vif"] for (_, i, o), row in found.items() if i != o]
    assert means(rows)["copy"]["mean_vif_off_diagonal"] == pytest.approx(sum(off) / 8)


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    stacks, path = [textured(seed) for seed in range(2)], tmp_path / "new" / "new.scores"
    whole = evaluated([Constant(), COPIES], stacks, "noise", Comparison([0, 4]))

    class Killed(Constant):
        def made(self, photo: Tensor, position: int) -> Tensor:
            if len(self.seen) == 3:
                raise KeyboardInterrupt
            return super().made(photo, position)

    with pytest.raises(KeyboardInterrupt):
        evaluated(
            [Killed(), COPIES], stacks, "noise", Comparison([0, 4]), ledger=Ledger(path, "key")
        )
    model = Constant()
    ledger = Ledger(path, "key")
    assert len(ledger) == 5
    assert evaluated([model, COPIES], stacks, "noise", Comparison([0, 4]), ledger=ledger) == whole
    assert len(model.seen) == 1
    assert len(Ledger(path, "key")) == 8
    ledger.remove()
    assert not path.exists()


def test_scores_of_another_evaluation_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "new.scores"
    evaluated([COPIES], [textured(0)], "noise", Comparison([0]), ledger=Ledger(path, "key"))
    assert len(Ledger(path, "key")) == 1
    assert len(Ledger(path, "other")) == 0
    path.write_text('{"schema_version": 1, "key": "key", "calls"')
    assert len(Ledger(path, "key")) == 0


def test_scores_that_were_computed_otherwise_are_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scoring = evaluate.Scoring([])
    before = scoring.key("stacks")
    assert scoring.key("stacks") == before != scoring.key("others")
    monkeypatch.setattr(evaluate, "source_hash", lambda *_: "another program")
    assert scoring.key("stacks") != before


def test_scores_are_saved_while_an_evaluation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves the calls that were made until shortly before."""
    monkeypatch.setattr(scores, "EVERY_S", 0.0)
    path = tmp_path / "new.scores"
    ledger = Ledger(path, "key")
    for position in range(3):
        found = {0: Score(30.0, 0.5), 8: Score(20.0, 0.25, 1.5, 0.75)}
        ledger.add(Call(scene=0, model="copy", position=position, scores=found))
        assert list(Ledger(path, "key")) == list(ledger)
    path.write_text(path.read_text().replace("0.25", '"none"'))
    with pytest.raises(UserError, match=r"new\.scores, call 1, scores\.8\.1: .*: delete the file"):
        Ledger(path, "key")


def test_grids_are_drawn_beside_each_other() -> None:
    found = evaluate_models([COPIES, Constant()], [textured(0)], "noise", Comparison([0, 4])).cells
    two = Image.open(BytesIO(grids_chart(found)))
    one = Image.open(BytesIO(grids_chart([cell for cell in found if cell.model == "copy"])))
    assert two.width == pytest.approx(2 * one.width, abs=2)
    assert len(set(one.convert("RGB").tobytes())) > 50
    with pytest.raises(ValueError, match="no cell"):
        grids_chart([])


def halfway(stack: Tensor, share: float, name: str = "halfway") -> Model:
    """Adds a share of what the photo lacks of the true stack."""
    return Model(name, None, lambda photo, _: photo + share * (stack - photo))


def racked(side: int = 128) -> FocalStack:
    """Noise whose left half is sharp near and whose right half is sharp far."""
    generator = torch.Generator().manual_seed(3)
    sharp = torch.rand(1, 3, side, side, generator=generator) * 1.2 - 0.6
    left = (torch.arange(side) < side // 2).float()
    frames = [
        left * box(sharp, position // 2) + (1 - left) * box(sharp, 4 - position // 2)
        for position in range(9)
    ]
    return FocalStack("racked", torch.cat(frames), WHOLE)


def test_what_is_restored_where_the_truth_is_sharper() -> None:
    stack = racked(64)
    models = [COPIES, halfway(stack.frames, 0.5), halfway(stack.frames, 1.0, "all")]
    found = {row.model: row for row in evaluate_models(models, [stack], "racked").means}
    assert found["copy"].restored == found["copy"].sharper_gain_db == 0
    assert found["halfway"].restored == pytest.approx(0.5, abs=1e-5)
    assert found["halfway"].sharper_gain_db == pytest.approx(decibels(0.5) - decibels(1), abs=1e-4)
    assert found["all"].restored == pytest.approx(1, abs=1e-5)
    assert (found["all"].focus_accuracy, found["all"].focus_error) == (1, 0)
    assert (found["copy"].focus_accuracy, found["copy"].focus_error) == (0.5, 4)  # all the first


def test_focus_of_few_frames_is_off_by_their_positions() -> None:
    """Frames at 0, 4 and 8: the first in place of the last is eight positions off, and not two."""
    whole = racked(64)
    sparse = FocalStack("sparse", whole.frames[::4], whole.positions[::4])
    (copied,) = evaluate_models([COPIES], [sparse], "sparse").means
    assert (copied.focus_accuracy, copied.focus_error) == (0.5, 4)


def test_what_is_plain_everywhere_lacks_nothing() -> None:
    row = evaluate_models([COPIES], [greys([0.1 * n - 0.4 for n in range(9)])], "ramp").means[0]
    assert row.restored is row.sharper_gain_db is row.focus_accuracy is row.focus_error is None


def test_images_are_compared_at_a_size_that_the_photo_does_not_have() -> None:
    stack, model = racked(), Constant()
    how = Comparison([2], size=(32, 48))
    found = {
        cell.output_position: cell
        for cell in evaluate_models([model], [stack], "racked", how).cells
    }
    assert model.seen == [(1, 3, 128, 128)]
    truth = resized(stack.frames[5:6], (32, 48))
    assert found[5].psnr_db == pytest.approx(psnr(torch.zeros_like(truth), truth))
