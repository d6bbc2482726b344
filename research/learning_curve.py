"""Gain on real scenes against what a student has seen, with a line through it.

    pocketfocus evaluate FIRST SECOND THIRD --stacks DIR --out evaluate.json
    python -m pocketfocus.research.learning_curve evaluate.json curve.png 288=FIRST 2276=SECOND ...

draws the gains over `copy` of models, each behind the megapixels of crops that it has seen, and
prints them as a table with what ten times as much would bring by the line: least
squares of dB over the logarithm of megapixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from pocketfocus.benchmarks.evaluation import read_evaluation
from pocketfocus.benchmarks.tables import figure, markdown
from pocketfocus.distill.train.plot import save
from pocketfocus.run.errors import UserError, reported

FEWEST = 3  # points that a line with an error needs


class Point(NamedTuple):
    """What a model has seen, and what it gains over `copy` with the scenes' standard error."""

    megapixels: float
    gain_db: float
    error_db: float


class Line(NamedTuple):
    """gain = start_db + per_decade_db * log10(megapixels), and the standard error of the slope."""

    start_db: float
    per_decade_db: float
    error_db: float

    def gain(self, megapixels: float) -> float:
        """Return the gain in dB that the line has there."""
        return self.start_db + self.per_decade_db * float(np.log10(megapixels))


def points_of(evaluation: Path, seen: Sequence[str]) -> list[Point]:
    """Look up models in an evaluation by `MEGAPIXELS=MODEL`, least seen first.

    UserError for words of another form, and for a model that the file does not have.
    """
    means = {row.model: row for row in read_evaluation(evaluation).means}
    found = []
    for words in seen:
        amount, _, model = words.partition("=")
        try:
            megapixels = float(amount)
        except ValueError:
            megapixels = 0.0
        if not megapixels > 0:
            raise UserError(f"{words} is no point: write MEGAPIXELS=MODEL, as 288=build/student")
        row = means.get(model)
        if row is None or row.gain_db is None:
            raise UserError(
                f"{evaluation} has no gain of {model}, but of {', '.join(means)}: name one of these"
            )
        found.append(Point(megapixels, row.gain_db, row.gain_error_db or 0.0))
    return sorted(found)


def fitted(points: Sequence[Point]) -> Line:
    """Fit a line by least squares; UserError where there are too few different points."""
    if len({point.megapixels for point in points}) < FEWEST:
        raise UserError(f"a line needs {FEWEST} different amounts, these are fewer: name more")
    decades = np.log10([point.megapixels for point in points])
    gains = [point.gain_db for point in points]
    (slope, start), residual, *_ = np.polyfit(decades, gains, 1, full=True)
    variance = float(residual[0]) / (len(points) - 2) if len(residual) else 0.0
    spread = float(((decades - decades.mean()) ** 2).sum())
    return Line(float(start), float(slope), (variance / spread) ** 0.5)


def table(points: Sequence[Point], line: Line) -> str:
    """Return points and what the line says of ten times as much, as Markdown."""
    rows = [
        [figure(p.megapixels, 0), f"{p.gain_db:+.2f}", f"{line.gain(p.megapixels):+.2f}"]
        for p in points
    ]
    more = 10 * points[-1].megapixels
    header = ["megapixels of crops", "gain over copy, dB", "by the line, dB"]
    slope = f"{line.per_decade_db:+.2f} ± {line.error_db:.2f} dB a factor of ten"
    rows.append([figure(more, 0), "–", f"{line.gain(more):+.2f}"])
    return f"{markdown(header, rows)}\n{slope}"


def curve(points: Sequence[Point], line: Line) -> Figure:
    """Draw the points with their errors, and the line to ten times the last one."""
    drawn = Figure(figsize=(5.5, 3.4))
    axes = drawn.add_subplot()
    seen = [point.megapixels for point in points]
    gains, errors = ([getattr(p, name) for p in points] for name in ("gain_db", "error_db"))
    axes.errorbar(seen, gains, errors, fmt="o", color="tab:blue", capsize=3, label="measured")
    ends = [seen[0], 10 * seen[-1]]
    axes.plot(ends, [line.gain(x) for x in ends], "--", color="tab:gray", label="line")
    axes.set_xscale("log")
    axes.set_xlabel("megapixels of crops seen in training")
    axes.set_ylabel("gain over copy (dB)")
    axes.legend(loc="lower right")
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("seen", nargs="+", metavar="MEGAPIXELS=MODEL")
    options = parser.parse_args(arguments)
    with reported("learning_curve"):
        points = points_of(options.evaluation, options.seen)
        line = fitted(points)
        save(curve(points, line), options.picture)
        print(table(points, line))


if __name__ == "__main__":
    main()
