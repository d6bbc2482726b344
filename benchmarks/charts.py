"""Charts of the report and the model card, as PNG bytes."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from pocketfocus.benchmarks.evaluation import Cell
from pocketfocus.export.targets import TARGETS, get_target
from pocketfocus.mobile_harness.device import HOST, PYTORCH
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.manifest import Manifest, makes_stacks
from pocketfocus.run.results import BenchRow

matplotlib.rcParams["text.parse_math"] = False  # a phone may be called $\\frac$

TITLE = 72  # characters a line
EAGER, OTHER = "#888888", "#555555"


def colour_of(target: str) -> str:
    """A target's own colour; greys for eager PyTorch and what is no target."""
    if target in TARGETS:
        return get_target(target).colour
    return EAGER if target == PYTORCH else OTHER


def latency_chart(bench: Sequence[BenchRow]) -> bytes:
    """Draw p50 (bar) to p99 (whisker) of all that makes stacks, on a log axis in ms."""
    rows = [
        (row, row.p50_ms, row.p99_ms)
        for row in bench
        if row.p50_ms is not None and row.p99_ms is not None and makes_stacks(row.artifact)
    ]
    figure = Figure(figsize=(7, 0.6 + 0.32 * max(1, len(rows))))
    axis = figure.subplots()
    for y, (row, p50, p99) in enumerate(rows):
        axis.barh(y, p50, color=colour_of(row.target))
        axis.plot([p50, p99], [y, y], color="black", linewidth=1.2)
        axis.text(p99 * 1.08, y, f"{p50:,.1f}", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [_label(row) for row, *_ in rows], fontsize=8)
    axis.set(xscale="log", xlabel="ms a stack, p50 (line: to p99), log scale")
    axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
    axis.xaxis.set(minor_locator=NullLocator())  # matplotlib's own labels are formulas
    axis.margins(x=0.25)
    axis.invert_yaxis()
    return _png(figure)


def _label(row: BenchRow) -> str:
    """Return the artifact, and whose figure it is where another device measured it."""
    return row.artifact if row.device == HOST else f"{row.artifact}\n{row.device}"


def sustained_chart(rows: Sequence[BenchRow]) -> bytes | None:
    """Draw a line a run without a pause: ms a call over its seconds; None when there is none."""
    runs = [(row, row.sustained.course) for row in rows if row.sustained and row.sustained.course]
    if not runs:
        return None
    figure = Figure(figsize=(7, 3))
    axis = figure.subplots()
    for row, course in runs:
        seconds, ms = zip(*course, strict=True)
        axis.plot(seconds, ms, marker=".", markersize=3, linewidth=1.2, label=_label(row))
    axis.set(xlabel="seconds without a pause", ylabel="ms a stack")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return _png(figure)


def size_chart(manifest: Manifest) -> bytes:
    """Draw the MiB of every file."""
    files = [a for a in manifest.artifacts if a.bytes]
    figure = Figure(figsize=(7, 0.6 + 0.32 * max(1, len(files))))
    axis = figure.subplots()
    for y, artifact in enumerate(files):
        mib = artifact.bytes / 2**20
        axis.barh(y, mib, color=colour_of(artifact.target))
        axis.text(mib, y, f" {mib:.2f}", va="center", fontsize=8)
    axis.set_yticks(range(len(files)), [a.name for a in files], fontsize=8)
    axis.set(xlabel="MiB")
    axis.margins(x=0.15)
    axis.invert_yaxis()
    return _png(figure)


def grids_chart(cells: Sequence[Cell]) -> bytes:
    """Draw the 9×9 PSNR grid of every model on every set of stacks, on one scale.

    The scale spans the cells off the diagonal; cells without truth stay empty. ValueError when
    there is no cell.
    """
    if not cells:
        raise ValueError("no cell to plot")
    grids = list(dict.fromkeys((cell.model, cell.stacks) for cell in cells))
    scale = [cell.psnr_db for cell in cells if cell.distance] or [cell.psnr_db for cell in cells]
    columns = min(3, len(grids))
    lines = math.ceil(len(grids) / columns)
    picture = Figure(figsize=(4.6 * columns, 5.1 * lines), layout="constrained")
    for index, (model, stacks) in enumerate(grids):
        axis = picture.add_subplot(lines, columns, index + 1)
        own = [cell for cell in cells if (cell.model, cell.stacks) == (model, stacks)]
        _draw_grid(axis, own, min(scale), max(scale))
        title = textwrap.fill(f"{model} on {stacks}", TITLE)  # matplotlib's own reads formulas
        axis.set_title(title, fontsize=9)
    return _png(picture, dpi=110, tight=False)


def _draw_grid(axis: Any, cells: Sequence[Cell], low: float, high: float) -> None:
    """Draw one heat map: a row for an input position, a column for an output position."""
    grid = np.full((FRAMES, FRAMES), math.nan)
    middle = (low + high) / 2
    for cell in cells:
        row, column = cell.input_position, cell.output_position
        grid[row, column] = cell.psnr_db
        look = {"color": "black" if cell.psnr_db > middle else "white", "fontsize": 7}
        axis.text(column, row, f"{cell.psnr_db:.0f}", ha="center", va="center", **look)
    axis.imshow(grid, vmin=low, vmax=max(high, low + 0.1), cmap="viridis")
    axis.set(xticks=range(FRAMES), yticks=range(FRAMES))
    axis.set(xlabel="output position (0 near, 8 far)", ylabel="input position")


def _png(figure: Figure, dpi: int = 120, tight: bool = True) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png", bbox_inches="tight" if tight else None)
    return buffer.getvalue()
