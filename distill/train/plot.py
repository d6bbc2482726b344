"""The curves of trainings, from their JSONL logs.

All those of a folder in one picture:

    python -m pocketfocus.distill.train.plot docs/training docs/training/curves.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic

TITLES = {"gain_db": "gain over copy (dB)", "psnr_db": "PSNR (dB)", "loss": "loss"}
COLUMNS = 4


@dataclass(frozen=True)
class Curve:
    """One value of a log over its steps."""

    title: str
    steps: list[float]
    values: list[float]

    def draw(self, axes: Axes) -> None:
        """Draw every row faint, and their running mean bold."""
        width = max(1, len(self.values) // 20)
        smooth = np.convolve(self.values, np.ones(width) / width, "valid")
        axes.plot(self.steps, self.values, color="tab:blue", alpha=0.25)
        axes.plot(self.steps[width - 1 :], smooth, color="tab:blue")
        axes.set_xlabel("step")
        axes.set_title(self.title, fontsize=9)


def curves_of(log: Path) -> list[Curve]:
    """Read the values of TITLES that every row has, in that order; none of an empty log."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows]
    names = [name for name in TITLES if rows and all(name in row for row in rows)]
    return [Curve(TITLES[name], steps, [row[name] for row in rows]) for name in names]


def loss_figure(log: Path) -> Figure:
    """Draw the loss of a log, and PSNR and gain where they are logged, beside each other."""
    curves = curves_of(log)[::-1]
    figure = Figure(figsize=(5 * len(curves), 3))
    for axes, curve in zip(
        figure.subplots(1, len(curves), squeeze=False).flat, curves, strict=True
    ):
        curve.draw(axes)
    return figure


def folder_figure(folder: Path) -> Figure:
    """Draw a panel for every NAME.jsonl of a folder that has rows: its gain, its PSNR or else its
    loss. UserError when there is none."""
    found = ((log.stem, curves_of(log)) for log in sorted(folder.glob("*.jsonl")))
    logs = [(name, curves[0]) for name, curves in found if curves]
    if not logs:
        raise UserError(f"{folder} holds no .jsonl with rows: name the folder of training logs")
    columns, lines = min(COLUMNS, len(logs)), -(-len(logs) // COLUMNS)
    figure = Figure(figsize=(3.4 * columns, 2.8 * lines))
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, (name, curve) in zip(panels, logs, strict=False):
        curve.draw(axes)
        axes.set_title(f"{name}: {curve.title}", fontsize=9)
    for axes in panels[len(logs) :]:
        axes.remove()
    return figure


def save(figure: Figure, picture: Path) -> None:
    """Write a figure, atomically."""
    figure.tight_layout()
    with write_atomic(picture) as scratch:
        figure.savefig(scratch, dpi=110, format=picture.suffix[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Plot the logs of a folder; see the module's docstring."""
    parser = argparse.ArgumentParser(description="plot every training log of a folder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    save(folder_figure(options.folder), options.picture)


if __name__ == "__main__":
    main()
