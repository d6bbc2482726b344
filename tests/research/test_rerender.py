"""Scenes rendered again: what they were rendered with fits best, and motion is told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pocketfocus.data.optics import Shoulder, dioptres
from pocketfocus.research import blur, motion, rerender
from pocketfocus.research.rerender import distances, in_light_of, main, rerendered, study
from pocketfocus.run.metrics import psnr
from tests.breathing import write_breathing
from tests.data.test_stacks import greys, write_scene

H, W = 120, 160
PRESSED = Shoulder(2, 8)


@pytest.fixture(scope="module")
def sharp() -> Tensor:
    """Grain with white beads: a picture [3, H, W] in [-1, 1]."""
    picture = torch.from_numpy(np.random.default_rng(0).random((1, H, W), np.float32)) * 0.6
    picture[:, 4::12, 4::12] = picture[:, 5::12, 4::12] = 1.0
    return picture.expand(3, -1, -1) * 2 - 1


@pytest.fixture(scope="module")
def stack(sharp: Tensor) -> Tensor:
    """Its left half at position 2, its right half at position 6, under a pressed tone curve."""
    depth = torch.full((H, W), dioptres(2))
    depth[:, W // 2 :] = dioptres(6)
    return rerendered(sharp, depth, PRESSED)


def test_distances_and_the_tone_curve_are_found(sharp: Tensor, stack: Tensor) -> None:
    depth = distances(stack, sharp)
    assert float(depth[:, 8:64].median()) == pytest.approx(dioptres(2), abs=0.5)
    assert float(depth[:, 96:-8].median()) == pytest.approx(dioptres(6), abs=0.5)
    rows = {row[0]: row[1:] for row in study([stack])}
    assert rows[PRESSED][0] > rows[Shoulder(0, 8)][0] + 1
    assert rows[PRESSED][2] > rows[Shoulder(0, 8)][2] + 0.5


def test_light_that_falls_off_is_no_difference(sharp: Tensor) -> None:
    fall = 1 - 0.2 * torch.linspace(-1, 1, W) ** 2
    darker = (sharp + 1) * fall - 1
    assert psnr(in_light_of(darker, sharp), sharp) > psnr(darker, sharp) + 20


def test_both_tables(
    stack: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stack that breathes: its distortion is what it was given."""
    monkeypatch.setattr(rerender, "SHOULDERS", rerender.SHOULDERS[:2])
    step = torch.tensor([0.0, 0.0, -0.002, 0.0, 0.0, -0.002, 0.002])
    write_breathing(tmp_path / "scene", stack, step)
    main([str(tmp_path)])
    assert capsys.readouterr().out.count("\n| ") == 4
    motion.main([str(tmp_path)])
    cells = capsys.readouterr().out.splitlines()[-1].split("|")
    assert cells[1].strip() == "scene"
    assert float(cells[3]) == pytest.approx(1.6, abs=0.5)
    assert float(cells[4]) == pytest.approx(-1.6, abs=0.5)
    assert float(cells[6]) > float(cells[5])


@pytest.mark.parametrize("script", [rerender, blur])
def test_stacks_without_all_positions_are_refused(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their frames were taken for neighbours."""
    few = write_scene(tmp_path / "few", greys(3))
    (few / "positions.txt").write_text("0\n4\n8\n")
    with pytest.raises(SystemExit) as stop:
        script.main([str(tmp_path)])
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "few skipped: frames at 0 to 8 are needed" in said
