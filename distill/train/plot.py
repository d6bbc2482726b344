"""The curves of trainings, from their JSONL logs.

All those of a folder in one picture:

    python -m pocketfocus.distill.train.plot docs/training docs/training/curves.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import write_atomic

TITLES = {"loss": "loss", "psnr_db": "PSNR (dB)", "gain_db": "gain over copy (dB)"}
COLUMNS = 4


class Curve(NamedTuple):
    """One value of a log over its steps."""

    title: str
    steps: list[float]
    values: list[float]


def curves_of(log: Path) -> list[Curve]:
    """Read the values of TITLES that every row has, in that order; none of an empty log."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows]
    names = [name for name in TITLES if rows and all(name in row for row in rows)]
    return [Curve(TITLES[name], steps, [row[name] for row in rows]) for name in names]


def loss_figure(log: Path) -> Figure:
    """Draw the loss of a log, and PSNR and gain where they are logged, beside each other."""
    return _figure({curve.title: curve for curve in curves_of(log)}, (5, 3))


def folder_figure(folder: Path) -> Figure:
    """Draw a panel for every NAME.jsonl of a folder that has rows: its gain, its PSNR or else its
    loss. UserError when there is none."""
    found = {log.stem: curves_of(log) for log in sorted(folder.glob("*.jsonl"))}
    last = {f"{name}: {curves[-1].title}": curves[-1] for name, curves in found.items() if curves}
    if not last:
        raise UserError(f"{folder} holds no .jsonl with rows: name the folder of training logs")
    return _figure(last, (3.4, 2.8))


def _figure(panels: Mapping[str, Curve], size: tuple[float, float]) -> Figure:
    """Draw every row of a curve faint and the running mean bold, in panels of a size (inches)."""
    columns, lines = min(COLUMNS, len(panels)), -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(size[0] * columns, size[1] * lines))
    for place, (title, curve) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(lines, columns, place)
        width = max(1, len(curve.values) // 20)
        smooth = np.convolve(curve.values, np.ones(width) / width, "valid")
        axes.plot(curve.steps, curve.values, color="tab:blue", alpha=0.25)
        axes.plot(curve.steps[width - 1 :], smooth, color="tab:blue")
        axes.set_xlabel("step")
        axes.set_title(title, fontsize=9)
    return figure


def save(figure: Figure, picture: Path) -> None:
    """Write a figure, atomically."""
    figure.tight_layout()
    with write_atomic(picture) as scratch:
        figure.savefig(scratch, dpi=110, format=picture.suffix[1:])


@reported("plot")
def main(arguments: Sequence[str] | None = None) -> None:
    """Plot the logs of a folder; see the module's docstring."""
    parser = argparse.ArgumentParser(description="plot every training log of a folder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    save(folder_figure(options.folder), options.picture)


if __name__ == "__main__":
    main()
