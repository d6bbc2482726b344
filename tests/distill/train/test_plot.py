"""Curves of training logs: what is drawn, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from pocketfocus.distill.train.plot import folder_figure, loss_figure, main, save

STEPS = np.arange(1, 61)


def values(name: str) -> np.ndarray:
    """Another curve for each name."""
    return len(name) / STEPS


def write_log(path: Path, *names: str) -> None:
    rows = [
        {"step": int(step), **{name: values(name)[i] for name in names}}
        for i, step in enumerate(STEPS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def assert_drawn(axes: Axes, name: str) -> None:
    """Every row of the log, and their running mean over three: a twentieth of the rows."""
    rows, mean = axes.lines
    assert np.array_equal(rows.get_xdata(), STEPS)
    assert np.allclose(np.asarray(rows.get_ydata(), float), values(name))
    smooth = [values(name)[n : n + 3].mean() for n in range(len(STEPS) - 2)]
    assert np.array_equal(mean.get_xdata(), STEPS[2:])
    assert np.allclose(np.asarray(mean.get_ydata(), float), smooth)
    low, high = axes.get_ylim()
    assert low < values(name).min() and values(name).max() < high


def test_a_panel_for_every_log_with_rows_and_no_other(tmp_path: Path) -> None:
    """Of each its gain, else its PSNR, else its loss; four in a row."""
    logs = {
        "a": ("loss", "psnr_db", "gain_db"),
        "b": ("loss", "psnr_db"),
        "c": ("loss",),
        "d": ("loss",),
        "e": ("loss", "lr"),
    }
    for name, columns in logs.items():
        write_log(tmp_path / f"{name}.jsonl", *columns)
    (tmp_path / "empty.jsonl").touch()
    panels = folder_figure(tmp_path).axes
    shown = ["gain_db", "psnr_db", "loss", "loss", "loss"]
    for axes, name in zip(panels, shown, strict=True):
        assert_drawn(axes, name)
    titles = ["a: gain over copy (dB)", "b: PSNR (dB)", "c: loss", "d: loss", "e: loss"]
    assert [axes.get_title() for axes in panels] == titles
    places = [axes.get_position() for axes in panels]
    assert [place.y0 == places[0].y0 for place in places] == [True] * 4 + [False]


def test_one_log_has_a_panel_for_each_of_its_values(tmp_path: Path) -> None:
    for names in (("loss",), ("loss", "psnr_db"), ("loss", "psnr_db", "gain_db")):
        write_log(tmp_path / "train.jsonl", *names)
        panels = loss_figure(tmp_path / "train.jsonl").axes
        for axes, name in zip(panels, names, strict=True):
            assert_drawn(axes, name)


def test_a_value_that_not_every_row_has_is_not_drawn(tmp_path: Path) -> None:
    write_log(tmp_path / "train.jsonl", "loss", "psnr_db")
    with open(tmp_path / "train.jsonl", "a") as log:
        log.write('{"step": 61, "loss": 1}\n')
    (axes,) = loss_figure(tmp_path / "train.jsonl").axes
    assert axes.get_title() == "loss" and len(axes.lines[0].get_xdata()) == 61  # type: ignore[arg-type]


def test_the_command_writes_a_picture_with_a_curve_in_it(tmp_path: Path) -> None:
    write_log(tmp_path / "one.jsonl", "loss")
    main([str(tmp_path), str(tmp_path / "curves.png")])
    drawn = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    save(loss_figure(tmp_path / "one.jsonl"), tmp_path / "loss.png")
    alone = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")).astype(int)
    for pixels in (drawn, alone):
        blue = pixels[..., 2] - pixels[..., 0]
        assert (blue > 60).sum() > 100, "the colour of the curves"


def test_a_folder_without_rows_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main([str(tmp_path), str(tmp_path / "curves.png")])
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and "holds no .jsonl" in line
        assert not (tmp_path / "curves.png").exists()
        (tmp_path / "empty.jsonl").touch()
