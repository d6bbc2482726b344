"""The model card: its pictures show what they say, its figures are those of the files."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from pocketfocus.benchmarks.baselines import COPIES, Filter
from pocketfocus.benchmarks.evaluate import Comparison, evaluate_models
from pocketfocus.benchmarks.evaluation import Means
from pocketfocus.benchmarks.tables import distance_table
from pocketfocus.data.stacks import FocalStack
from pocketfocus.models.model import Model
from pocketfocus.research import card
from pocketfocus.research.card import CROP, Shot, changes, farthest, main, shots
from pocketfocus.run.rows import write_rows
from tests.house.source import ROOT

POSITIONS = tuple(map(float, range(9)))
SIDE = 192


def two_halves(seed: int = 0) -> FocalStack:
    """The left half is sharp in frame 0, the right half in frame 8, blurred in steps between."""
    generator = torch.Generator().manual_seed(seed)
    sharp = torch.rand(1, 3, SIDE, SIDE, generator=generator) * 1.6 - 0.8
    blurred = [sharp, *(Filter(0.4 * n)(sharp) for n in range(1, 9))]
    frames = torch.cat(blurred)
    frames[:, :, :, SIDE // 2 :] = frames.flip(0)[:, :, :, SIDE // 2 :].clone()
    return FocalStack(f"halves-{seed}", frames, POSITIONS)


def halfway(scene: FocalStack) -> Model:
    """Knows the truth, and goes halfway from the photo to it."""
    return Model("reference", None, lambda photo, _: (photo + scene.frames) / 2)


def test_shots_are_scored_against_copy() -> None:
    scene = two_halves()
    (shot,) = shots(halfway(scene), [scene])
    assert shot.gain == pytest.approx(6.02, abs=0.01)
    assert shot.position == 1
    assert farthest(shot) == 8


def test_crops_show_what_gets_sharper_and_what_gets_blurred() -> None:
    scene = two_halves()
    shot = Shot(scene.name, scene.frames, scene.frames, 0, 0.0)
    sharper, blurred = changes(shot)
    assert sharper.to == blurred.to == 8
    assert sharper.left >= SIDE // 2 - CROP // 4
    assert blurred.left <= SIDE // 2 - CROP + CROP // 4


def test_the_table_has_gains_and_distances() -> None:
    row = Means(
        model="student",
        stacks="synthetic",
        mean_psnr_db=31.0,
        mean_ssim=0.9,
        mean_psnr_db_off_diagonal=30.123,
        mean_ssim_off_diagonal=0.8765,
        psnr_db_by_distance={"1": 33.3, "2": None},
        scenes=3,
        gain_db=0.5,
        gain_error_db=0.111,
    )
    line = distance_table([row]).splitlines()[2]
    assert line == "| student | synthetic | 3 | 30.12 | +0.50 ± 0.11 | 0.876 | – | – | 33.3 | – |"


@pytest.mark.parametrize("subject", ["student", "reference"])
def test_a_card_gets_its_figures_and_pictures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    subject: str,
) -> None:
    scenes = [two_halves(seed) for seed in range(3)]
    model = halfway(scenes[0])
    monkeypatch.setattr(card, "validation_stacks", lambda count, size: scenes)
    monkeypatch.setattr(card, "open_model", lambda name: model)
    table = evaluate_models([model, COPIES], scenes[:1], "synthetic", Comparison((0, 8)))
    file = str(tmp_path / "run/onnx/student-int8.onnx")
    names = {"copy": "copy", "reference": file}
    cells = [cell.model_copy(update={"model": names[cell.model]}) for cell in table.cells]
    means = [mean.model_copy(update={"model": names[mean.model]}) for mean in table.means]
    write_rows(tmp_path / "synthetic.json", [*cells, *means])
    main([subject, str(tmp_path / "synthetic.json"), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| copy | synthetic | 1 |" in printed
    assert "| onnx/student-int8.onnx | synthetic" in printed
    assert "Of 3 scenes" in printed and "to +6.02 dB" in printed
    page = {"student": "MODEL_CARD.md", "reference": "docs/reference.md"}[subject]
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = {Path(name).name for name in re.findall(r"\]\(([^)]+\.(?:jpg|png))\)", text)}
    made = sorted((tmp_path / "docs" / subject).iterdir())
    assert {path.name for path in made if path.suffix == ".jpg"} <= shown
    assert len(made) == 4
    for path in made:
        with Image.open(path) as image:
            assert min(image.size) > 200


@pytest.mark.parametrize("subject", ["student", "reference"])
def test_a_missing_evaluation_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], subject: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([subject, str(tmp_path / "none.json"), "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.rglob("*.jpg"))
