"""A recipe found by measurement: the smallest file above a PSNR, or the best one under a size.

Starting from float, the move (a layer to fewer bits) that loses least for every byte it saves is
taken again and again. Errors of single layers add up as noise does: mean square errors are summed.
That is an estimate; what a file does is measured by `export` and `verify`. One recipe serves all
targets: rules name the targets for which they were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import Recipe, Rule, Scheme
from pocketfocus.quantize.sensitivity import (
    CANDIDATES,
    INT8,
    Sensitivity,
    applied_by,
    psnr_of,
)
from pocketfocus.quantize.toolchains import TOOLCHAINS
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic
from pocketfocus.run.manifest import load_manifest
from pocketfocus.run.results import VerifyRow
from pocketfocus.run.rows import read_rows

PARETO_FILE = "pareto.png"
SCALE_BYTES = 4  # at most; XNNPACK and Core ML keep two of them
START = Scheme(32)
MARGIN_DB = 1.0  # the gate of a found recipe lies this far below its estimate,
HIGHEST_GATE_DB = 50.0  # or here: what float16 alone is held to


@dataclass(frozen=True)
class Move:
    """A scheme for a layer: bytes it saves, and the square error it adds, against before."""

    layer: str
    requested: Scheme
    bytes_saved: float
    mse_added: float


@dataclass(frozen=True)
class Point:
    """A recipe on the way: what is requested of each layer, the estimated bytes and PSNR (dB)."""

    requested: Mapping[str, Scheme]
    bytes: float
    psnr_db: float


def weight_bytes(scheme: Scheme, layer: nn.Module, float_bytes: int) -> float:
    """How many bytes a layer's weight takes, its scales included."""
    shape = layer.get_parameter("weight").shape
    count = math.prod(shape)
    if scheme.bits >= 16:
        return float(count * float_bytes)
    if isinstance(scheme.granularity, int):
        scales = count / scheme.granularity
    else:
        outputs = shape[1] if isinstance(layer, nn.ConvTranspose2d) else shape[0]
        scales = outputs if scheme.granularity == "channel" else 1
    return count * scheme.bits / 8 + scales * SCALE_BYTES


def path(target: str, network: nn.Module, rows: Sequence[Sensitivity]) -> list[Point]:
    """The points from all float down to the fewest bits, each one move further.

    `rows` are those of `sensitivity.measure`. UserError when a layer was not measured.
    """
    tables = {requested: applied_by(target, requested, network) for requested in CANDIDATES}
    layers, float_bytes = layers_of(network), TOOLCHAINS[target].FLOAT_BYTES
    errors = {(row.layer, row.scheme): row.mse for row in rows}
    sizes: dict[tuple[str, Scheme], float] = {}
    for name, layer in layers.items():
        for scheme in (START, *(table[name] for table in tables.values())):
            sizes[name, scheme] = weight_bytes(scheme, layer, float_bytes)
            if scheme.bits >= 16:
                errors[name, scheme] = 0.0
            elif (name, scheme) not in errors:
                raise UserError(
                    f"layer {name} was not measured with {scheme}: run `pocketfocus sensitivity`"
                )
    now, requested_now = dict.fromkeys(layers, START), dict.fromkeys(layers, START)
    total = float(float_bytes * sum(parameter.numel() for parameter in network.parameters()))
    noise = 0.0
    points = [Point(dict(requested_now), total, psnr_of(noise))]
    while True:
        moves = [
            Move(
                name,
                requested,
                sizes[name, now[name]] - sizes[name, table[name]],
                errors[name, table[name]] - errors[name, now[name]],
            )
            for requested, table in tables.items()
            for name in layers
            # what only tells of the photo does not show in the stack, and keeps 8 bits
            if errors[name, table[name]] > 0 or table[name].bits >= 8
        ]
        moves = [move for move in moves if move.bytes_saved > 0]
        if not moves:
            return points
        best = min(moves, key=lambda m: (m.mse_added / m.bytes_saved, m.layer))
        now[best.layer] = tables[best.requested][best.layer]
        requested_now[best.layer] = best.requested
        total -= best.bytes_saved
        noise = max(noise + best.mse_added, 0.0)
        points.append(Point(dict(requested_now), total, psnr_of(noise)))


def choose_point(
    points: Sequence[Point], target: str, min_db: float | None, max_mb: float | None
) -> Point:
    """The smallest point of at least `min_db`, or the best of at most `max_mb` (10**6 bytes).

    With both, the smallest that meets both. UserError when none does, naming what can be had.
    """
    fitting = [
        point
        for point in points
        if (min_db is None or point.psnr_db >= min_db)
        and (max_mb is None or point.bytes <= max_mb * 1e6)
    ]
    if fitting:
        if min_db is None:
            return max(fitting, key=lambda point: point.psnr_db)
        return min(fitting, key=lambda point: point.bytes)
    smallest = min(points, key=lambda point: point.bytes)
    wanted = [f"{min_db:g} dB" for _ in [0] if min_db is not None]
    wanted += [f"{max_mb:g} MB" for _ in [0] if max_mb is not None]
    raise UserError(
        f"no {target} file is estimated to reach {' and '.join(wanted)}: the smallest has "
        f"{smallest.bytes / 1e6:.2f} MB and {smallest.psnr_db:.1f} dB; ask for less"
    )


def recipe_of(name: str, chosen: Mapping[str, Point]) -> Recipe:
    """One recipe for all targets: int8, and a rule for every layer and targets that differ."""
    rules = [Rule.of("*", INT8)]
    layers = next(iter(chosen.values())).requested
    for layer in layers:
        by_scheme: dict[Scheme, list[str]] = {}
        for target, point in chosen.items():
            by_scheme.setdefault(point.requested[layer], []).append(target)
        for scheme, targets in by_scheme.items():
            if scheme != INT8:
                everywhere = len(targets) == len(chosen)
                rules.append(Rule.of(layer, scheme, () if everywhere else targets))
    estimates = ", ".join(
        f"{target} {point.bytes / 1e6:.2f} MB at {point.psnr_db:.1f} dB"
        for target, point in chosen.items()
    )
    lowest = min(point.psnr_db for point in chosen.values())
    about = f"found by sensitivity, estimated: {estimates}"
    gate = round(min(max(lowest - MARGIN_DB, 0.0), HIGHEST_GATE_DB), 1)
    return Recipe(name=name, about=about, min_psnr_db=gate, rules=tuple(rules))


def measured_points(folder: Path) -> list[tuple[str, str, float, float]]:
    """(target, precision, bytes, worst dB) of every executed file of a run; none before verify."""
    if not (folder / "manifest.json").exists() or not (folder / "verify.json").exists():
        return []
    sizes = {artifact.name: artifact for artifact in load_manifest(folder).artifacts}
    return [
        (row.target, row.precision, sizes[row.artifact].bytes, row.psnr_db)
        for row in read_rows(folder / "verify.json", VerifyRow)
        if row.psnr_db is not None and row.artifact in sizes
    ]


def plot(
    paths: Mapping[str, Sequence[Point]],
    chosen: Mapping[str, Point],
    measured: Sequence[tuple[str, str, float, float]],
    colours: Mapping[str, str],
    file: Path,
) -> None:
    """Draw estimated points (lines), the chosen ones (rings) and measured files (crosses), by the
    colours of targets."""
    figure = Figure(figsize=(8, 5))
    axis = figure.subplots()
    shown = max((p.psnr_db for points in paths.values() for p in points[1:]), default=0.0) + 5
    for target, points in paths.items():
        line = [point for point in points if point.psnr_db < shown]
        colour = colours[target]
        axis.plot(
            [p.bytes / 1e6 for p in line],
            [p.psnr_db for p in line],
            color=colour,
            label=f"{target}, estimated",
        )
        if target in chosen:
            point = chosen[target]
            axis.plot(point.bytes / 1e6, point.psnr_db, "o", color=colour, fillstyle="none")
    for target, precision, size, figure_db in measured:
        if target in colours and figure_db < shown:
            axis.plot(size / 1e6, figure_db, "x", color=colours[target])
            axis.annotate(precision, (size / 1e6, figure_db), fontsize=7)
    axis.set(xlabel="MB", ylabel="PSNR against the float32 student, dB (crosses: worst stack)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with write_atomic(file) as scratch:
        figure.savefig(scratch, dpi=120, format="png", bbox_inches="tight")
