"""Curves of training logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pocketfocus.distill.train.plot import loss_plot, main, training_curves
from pocketfocus.run.errors import UserError


def write_log(path: Path, *names: str) -> None:
    rows = [{"step": step, **dict.fromkeys(names, 1 / step)} for step in range(1, 30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_panel_for_every_log(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 3, 5):
        write_log(tmp_path / f"{count}.jsonl", "loss", *(["psnr_db"] if count % 2 else []))
        write_log(tmp_path / f"{count}b.jsonl", "loss")
        main([str(tmp_path), str(tmp_path / "curves.png")])
        sizes.append(Image.open(tmp_path / "curves.png").size)
    assert sizes[0][0] < sizes[1][0]  # two panels, then four in a row, then a second row
    assert sizes[2] == (sizes[1][0], 2 * sizes[1][1])


def test_a_folder_without_logs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.jsonl"):
        training_curves(tmp_path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_loss_and_psnr_of_one_log(tmp_path: Path) -> None:
    widths = []
    for names in (("loss",), ("loss", "psnr_db")):
        write_log(tmp_path / "train.jsonl", *names)
        loss_plot(tmp_path / "train.jsonl", tmp_path / "loss.png")
        widths.append(Image.open(tmp_path / "loss.png").width)
    assert widths[1] == 2 * widths[0]
