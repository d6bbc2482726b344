"""Quality against true focal stacks: PSNR and SSIM for every input and output position.

A cell of the 9×9 grid is the mean of its per-image values over the scenes that have truth there; a
mean row averages the cells. Figures are capped at `ROUNDING_DB` per image: two images closer than
that are the same at 8 bits, and without a cap the exact diagonal of `copy` would swamp its mean.
The mean off the diagonal, beside copy, is the figure to compare.

Legend: N frames of a stack, H, W.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Protocol, runtime_checkable

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pocketfocus.benchmarks.scores import Call, Ledger, Scores
from pocketfocus.data.scenes import VALIDATION_SEED, held_out_photos
from pocketfocus.data.stacks import FocalStack, StackCache, cache_stacks
from pocketfocus.models.model import Model, refocus
from pocketfocus.run.cache import cache_home
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import Row, write_atomic
from pocketfocus.run.metrics import psnr, ssim
from pocketfocus.run.progress import track

EVALUATE_FILE = "evaluate.json"
TOLERANCE = 0.25  # a frame this far from a whole position still is the truth for it
ROUNDING_DB = 10 * math.log10(12 * 255**2)  # 58.9 dB: uniform error of half a step of 8 bits
COPY = "copy"
NO_GAIN: Row = {"gain_db": None, "gain_error_db": None}


@runtime_checkable
class Reconstructor(Protocol):
    """A model that is given the true stack itself: an autoencoder, the bound of what uses it."""

    def reconstruct(self, stack: Tensor) -> Tensor:
        """Frames [N, 3, H, W] in [-1, 1] as they come out again."""


def evaluate_models(
    models: Sequence[Model],
    stacks: Iterable[FocalStack],
    stacks_name: str,
    inputs: Iterable[int] = range(FRAMES),
    per_scene: int | None = None,
    ledger: Ledger | None = None,
) -> list[Row]:
    """Score every model on every stack, from the input positions that the stack has a frame for.

    per_scene: how many of `inputs` a scene, in turn over the scenes; None for all.
    ledger: calls found there are not made again; new ones are added.

    Returns a row a cell, {model, stacks, input_position, output_position, psnr_db, ssim}, then a
    row a model, {model, stacks, mean_psnr_db, mean_ssim, mean_psnr_db_off_diagonal,
    mean_ssim_off_diagonal, psnr_db_by_distance: {"1": dB, ...}, gain_db: over `copy` off the
    diagonal, gain_error_db: its standard error over the scenes, scenes}; a mean over no cell is
    None. UserError when two models share a name, when no frame can be scored, or when a model makes
    a stack of another shape or values that are not finite.
    """
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise UserError(f"two models share a name in {', '.join(names)}: name each one once")
    wanted, kept = tuple(inputs), Ledger() if ledger is None else ledger
    count = len(wanted) if per_scene is None else min(per_scene, len(wanted))
    total = len(stacks) * len(models) * count if isinstance(stacks, Sized) else None
    for scene, stack, truth, model, position in track(
        _tasks(models, stacks, wanted, count), f"evaluating on {stacks_name}", total
    ):
        if (scene, model.name, position) not in kept:
            kept.add(Call(scene, model.name, position, _score(model, stack, truth, position)))
    calls = list(kept)
    if not calls:
        raise UserError(
            f"{stacks_name} has no frame within {TOLERANCE} of an input position in "
            f"{', '.join(map(str, wanted))}: choose other inputs or give other stacks"
        )
    cells = _cells(calls, names, stacks_name)
    scenes = len({call.scene for call in calls})
    gains = _gains(calls)
    return cells + [
        {**_summary(cells, name, stacks_name, scenes), **gains.get(name, NO_GAIN)} for name in names
    ]


def _tasks(
    models: Sequence[Model],
    stacks: Iterable[FocalStack],
    inputs: Sequence[int],
    count: int,
) -> Iterator[tuple[int, FocalStack, dict[int, Tensor], Model, int]]:
    """Every call to make: scene number, stack, its truth, model, input position."""
    turn = 0
    for index, stack in enumerate(stacks):
        truth = frames_by_position(stack)
        usable = [position for position in inputs if position in truth]
        chosen = [usable[(turn + n) % len(usable)] for n in range(min(count, len(usable)))]
        turn += len(chosen)
        for model in models:
            for position in sorted(chosen):
                yield index, stack, truth, model, position


def _score(model: Model, stack: FocalStack, truth: Mapping[int, Tensor], position: int) -> Scores:
    """PSNR and SSIM by output position."""
    if isinstance(model, Reconstructor):
        made = model.reconstruct(torch.cat(list(truth.values()))).clamp(-1, 1)
        images = {output: made[n : n + 1] for n, output in enumerate(truth)}
    else:
        made = refocus(model, truth[position], position, stack.name)
        images = {output: made[output : output + 1] for output in truth}
    return {
        output: (min(ROUNDING_DB, psnr(images[output], frame)), ssim(images[output], frame))
        for output, frame in truth.items()
    }


def _cells(calls: Sequence[Call], names: Sequence[str], stacks_name: str) -> list[Row]:
    """A row a model, input and output position, in this order."""
    scores: dict[tuple[str, int, int], list[tuple[float, float]]] = defaultdict(list)
    for call in calls:
        for output, score in call.scores.items():
            scores[call.model, call.position, output].append(score)
    return [
        {
            "model": model,
            "stacks": stacks_name,
            "input_position": position,
            "output_position": output,
            "psnr_db": fmean(score[0] for score in found),
            "ssim": fmean(score[1] for score in found),
        }
        for name in names
        for (model, position, output), found in sorted(scores.items())
        if model == name
    ]


def _gains(calls: Sequence[Call]) -> dict[str, Row]:
    """Gain over `copy` off the diagonal by model: the mean of the scenes and its standard error."""
    scenes: dict[tuple[str, int], list[float]] = defaultdict(list)
    for call in calls:
        off = [psnr for output, (psnr, _) in call.scores.items() if output != call.position]
        scenes[call.model, call.scene] += off
    gains: dict[str, list[float]] = defaultdict(list)
    for (model, scene), values in scenes.items():
        copied = scenes.get((COPY, scene))
        if copied and len(copied) == len(values):
            gains[model].append(fmean(values) - fmean(copied))
    return {
        model: {
            "gain_db": fmean(values),
            "gain_error_db": stdev(values) / len(values) ** 0.5 if len(values) > 1 else None,
        }
        for model, values in gains.items()
    }


def frames_by_position(stack: FocalStack) -> dict[int, Tensor]:
    """The frames [1, 3, H, W] that are truth for a whole position, by position.

    The truth for a position is the frame nearest to it, the nearer one of two equals, if it is
    within `TOLERANCE`; frames between positions are not used.
    """
    found: dict[int, Tensor] = {}
    for position in range(FRAMES):
        distances = [abs(at - position) for at in stack.positions]
        nearest = distances.index(min(distances))
        if distances[nearest] <= TOLERANCE:
            found[position] = stack.frames[nearest : nearest + 1]
    return found


def _summary(cells: Sequence[Row], model: str, stacks_name: str, scenes: int) -> Row:
    """Means over one model's cells."""
    own = [cell for cell in cells if cell["model"] == model]
    off = [cell for cell in own if _distance(cell)]
    distances = sorted({_distance(cell) for cell in off})
    return {
        "model": model,
        "stacks": stacks_name,
        "mean_psnr_db": _mean(own, "psnr_db"),
        "mean_ssim": _mean(own, "ssim"),
        "mean_psnr_db_off_diagonal": _mean(off, "psnr_db"),
        "mean_ssim_off_diagonal": _mean(off, "ssim"),
        "psnr_db_by_distance": {
            str(d): _mean([cell for cell in off if _distance(cell) == d], "psnr_db")
            for d in distances
        },
        "scenes": scenes,
    }


def _distance(cell: Row) -> int:
    return abs(int(cell["input_position"]) - int(cell["output_position"]))


def _mean(cells: Sequence[Row], key: str) -> float | None:
    return fmean(cell[key] for cell in cells) if cells else None


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the mean rows: off the diagonal, its difference to copy, the mean, and by distance."""
    means = [row for row in rows if "mean_psnr_db" in row]
    distances = sorted({int(d) for row in means for d in row["psnr_db_by_distance"]})
    table = Table(
        title="PSNR in dB against true focal stacks",
        caption="Δ copy: gain over repeating the photo, off the diagonal, and its standard error. "
        f"d: positions between input and output. Per image at most {ROUNDING_DB:.1f} dB.",
    )
    table.add_column("model", overflow="fold")
    table.add_column("stacks", overflow="fold")
    table.add_column("scenes", justify="right", no_wrap=True)
    heads = ["off-diag.", "Δ copy", "SSIM", "mean", *(f"d={d}" for d in distances)]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in means:
        by_distance = [row["psnr_db_by_distance"].get(str(d)) for d in distances]
        table.add_row(
            row["model"],
            row["stacks"],
            str(row["scenes"]),
            _figure(row["mean_psnr_db_off_diagonal"], ".2f"),
            _gain(row),
            _figure(row["mean_ssim_off_diagonal"], ".3f"),
            _figure(row["mean_psnr_db"], ".2f"),
            *(_figure(value, ".1f") for value in by_distance),
        )
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=160)
    console.print(table)


def _gain(row: Row) -> str:
    """The gain over copy with its standard error; neither for copy itself."""
    if row["model"] == COPY:
        return "–"
    error = row["gain_error_db"]
    return _figure(row["gain_db"], "+z.2f") + ("" if error is None else f" ± {error:.2f}")


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def plot_grids(rows: Sequence[Row], path: Path) -> None:
    """Draw the 9×9 PSNR grid of every model on every set of stacks, on one scale.

    The scale spans the cells off the diagonal; cells without truth stay empty. ValueError when
    there is no cell.
    """
    cells = [row for row in rows if "input_position" in row]
    if not cells:
        raise ValueError("no cell to plot")
    grids = list(dict.fromkeys((cell["model"], cell["stacks"]) for cell in cells))
    scale = [cell["psnr_db"] for cell in cells if _distance(cell)] or [
        cell["psnr_db"] for cell in cells
    ]
    columns = min(3, len(grids))
    lines = math.ceil(len(grids) / columns)
    figure = Figure(figsize=(4.6 * columns, 5.1 * lines), layout="constrained")
    for index, (model, stacks) in enumerate(grids):
        axis = figure.add_subplot(lines, columns, index + 1)
        own = [cell for cell in cells if (cell["model"], cell["stacks"]) == (model, stacks)]
        _draw_grid(axis, own, min(scale), max(scale))
        axis.set_title(f"{model} on {stacks}", fontsize=9, wrap=True)
    with write_atomic(path) as scratch:
        figure.savefig(scratch, dpi=110)


def _draw_grid(axis: Any, cells: Sequence[Row], low: float, high: float) -> None:
    """One heat map: a row for an input position, a column for an output position."""
    grid = torch.full((FRAMES, FRAMES), math.nan)
    middle = (low + high) / 2
    for cell in cells:
        row, column, value = cell["input_position"], cell["output_position"], cell["psnr_db"]
        grid[row, column] = value
        ink = "black" if value > middle else "white"
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=ink)
    axis.imshow(grid.numpy(), vmin=low, vmax=max(high, low + 0.1), cmap="viridis")
    axis.set(xticks=range(FRAMES), yticks=range(FRAMES))
    axis.set(xlabel="output position (0 near, 8 far)", ylabel="input position")


def validation_stacks(scenes: int = 64, size: int = 256) -> StackCache:
    """Synthetic validation scenes with the held-out photos, rendered once and kept for later runs.

    They lie under $XDG_CACHE_HOME/pocketfocus, else ~/.cache/pocketfocus; UserError when that
    folder cannot be written.
    """
    folder = cache_home() / f"validation-{size}-{scenes}"
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + scenes)
    try:
        return cache_stacks(folder, seeds, (size, size), held_out_photos())
    except UserError as error:
        megabytes = scenes * FRAMES * 3 * size**2 / 1e6
        raise UserError(
            f"{folder} cannot keep the rendered validation scenes ({error.__cause__ or error}): "
            f"set XDG_CACHE_HOME to a folder that can be written, with {megabytes:.0f} MB free"
        ) from error
