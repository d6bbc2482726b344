"""The model card: its pictures show what they say, its figures are those of the files."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pocketfocus.benchmarks.baselines import Copy, Filter
from pocketfocus.benchmarks.evaluate import Comparison, Means, evaluate_models
from pocketfocus.benchmarks.tables import distance_table
from pocketfocus.data.stacks import FocalStack
from pocketfocus.research import card
from pocketfocus.research.card import CROP, Shot, corners, farthest, main, shots
from pocketfocus.run.rows import write_rows

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


class Halfway:
    """Knows the truth, and goes halfway from the photo to it."""

    name, size = "reference", None

    def __init__(self, scene: FocalStack) -> None:
        self.scene = scene

    def __call__(self, photo: Tensor, position: int) -> Tensor:
        return (photo + self.scene.frames) / 2


def test_shots_are_scored_against_copy() -> None:
    scene = two_halves()
    (shot,) = shots(Halfway(scene), [scene])
    assert shot.gain == pytest.approx(6.02, abs=0.01)
    assert shot.position == 1
    assert farthest(shot) == 8


def test_crops_show_what_gets_sharper_and_what_gets_blurred() -> None:
    scene = two_halves()
    shot = Shot(scene.name, scene.frames, scene.frames, 0, 0.0)
    sharper, blurred = corners(shot, 8)
    assert sharper[1] >= SIDE // 2 - CROP // 4
    assert blurred[1] <= SIDE // 2 - CROP + CROP // 4


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
def test_the_card_names_its_pictures_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: str
) -> None:
    scenes = [two_halves(seed) for seed in range(3)]
    model = Halfway(scenes[0])
    monkeypatch.setattr(card, "validation_stacks", lambda count, size: scenes)
    monkeypatch.setattr(card, "open_model", lambda name: model)
    rows = evaluate_models([model, Copy()], scenes[:1], "synthetic", Comparison((0, 8))).rows()
    write_rows(tmp_path / "synthetic.json", rows)
    main([subject, str(tmp_path / "synthetic.json"), "--out", str(tmp_path)])
    path = tmp_path / card.SUBJECTS[subject].card
    text = path.read_text(encoding="utf-8")
    assert "+6.02" in text
    assert "{{" not in text
    pictures = re.findall(r"\]\(([^)]+\.(?:jpg|png))\)", text)
    assert len(pictures) == 4
    for name in pictures:
        with Image.open(path.parent / name) as image:
            assert min(image.size) > 200


@pytest.mark.parametrize("subject", ["student", "reference"])
def test_a_missing_evaluation_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], subject: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([subject, str(tmp_path / "none.json"), "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.rglob("*.md"))
