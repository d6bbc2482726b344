"""The curves of trainings, from their JSONL logs.

All those of a folder in one picture:

    python -m pocketfocus.distill.train.plot docs/training docs/training/curves.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TITLES = {"loss": "loss", "psnr_db": "PSNR (dB)", "gain_db": "gain over copy (dB)"}
COLUMNS = 4
Rows = list[dict[str, float]]


def loss_plot(log: Path, picture: Path) -> None:
    """Plot loss and PSNR (where logged) over steps, each row faint and its running mean bold."""
    rows = _read(log)
    series = [name for name in TITLES if all(name in row for row in rows)]
    figure, axes = plt.subplots(1, len(series), figsize=(5 * len(series), 3), squeeze=False)
    for axis, name in zip(axes[0], series, strict=True):
        _curve(axis, rows, name, TITLES[name])
    _save(figure, picture)


def training_curves(folder: Path, picture: Path) -> None:
    """One panel for every NAME.jsonl of a folder: its gain, its PSNR or else its loss.

    UserError when there is no log.
    """
    logs = sorted(folder.glob("*.jsonl"))
    if not logs:
        raise UserError(f"{folder} holds no .jsonl: name the folder of training logs")
    lines = -(-len(logs) // COLUMNS)
    size = (3.4 * min(COLUMNS, len(logs)), 2.8 * lines)
    figure, axes = plt.subplots(lines, min(COLUMNS, len(logs)), figsize=size, squeeze=False)
    for axis in axes.flat[len(logs) :]:
        axis.axis("off")
    for axis, log in zip(axes.flat, logs, strict=False):
        rows = _read(log)
        name = next(n for n in ("gain_db", "psnr_db", "loss") if all(n in row for row in rows))
        _curve(axis, rows, name, f"{log.stem}: {TITLES[name]}")
    _save(figure, picture)


def _read(log: Path) -> Rows:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def _curve(axis: Axes, rows: Rows, name: str, title: str) -> None:
    steps = [row["step"] for row in rows]
    values = np.array([row[name] for row in rows], float)
    width = max(1, len(values) // 20)
    smooth = np.convolve(values, np.ones(width) / width, "valid")
    axis.plot(steps, values, color="tab:blue", alpha=0.25)
    axis.plot(steps[width - 1 :], smooth, color="tab:blue")
    axis.set_xlabel("step")
    axis.set_title(title, fontsize=9)


def _save(figure: Figure, picture: Path) -> None:
    figure.tight_layout()
    with write_atomic(picture) as scratch:
        figure.savefig(scratch, dpi=110, format=picture.suffix[1:])
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Plot the logs of a folder; see the module's docstring."""
    parser = argparse.ArgumentParser(description="plot every training log of a folder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    training_curves(options.folder, options.picture)


if __name__ == "__main__":
    main()
