"""Budgets of a comparison: how much slower, worse and bigger a file may become.

A budget is broken by a change beyond it, unless noise alone can explain the change. Where there is
too little to judge noise by, the change itself decides: what is not known must not pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pocketfocus.benchmarks.compare import LATENCY, QUALITY, SIZE, Change, Comparison
from pocketfocus.benchmarks.gates import STUDENT
from pocketfocus.benchmarks.measured import MeasuredRun
from pocketfocus.run.errors import UserError

Unit = Literal["%", "dB"]
SMALL = 0.05  # %, which one digit would show as nothing


@dataclass(frozen=True)
class Budget:
    """How much a metric may get worse: a share for latency and size, else dB."""

    option: str
    metric: str
    most: float
    stage: str


def read_budgets(slower: str | None, loss: str | None, bigger: str | None) -> list[Budget]:
    """Return the named budgets; UserError for what is no percentage, or no dB."""
    given: tuple[tuple[str, str | None, Unit, str, str], ...] = (
        ("--max-slower", slower, "%", LATENCY, "bench"),
        ("--max-loss", loss, "dB", QUALITY, "evaluate"),
        ("--max-bigger", bigger, "%", SIZE, "export"),
    )
    return [
        Budget(option, metric, parsed(option, text, unit), stage)
        for option, text, unit, metric, stage in given
        if text is not None
    ]


def parsed(option: str, text: str, unit: Unit) -> float:
    """Parse a percentage or a loss."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?{unit}", text.strip(), re.IGNORECASE)
    if match is None:
        what = {"%": "percentage: write one such as 5%", "dB": "loss: write one such as 0.1dB"}
        raise UserError(f"{option} {text} is no {what[unit]}")
    return float(match[1]) / (100 if unit == "%" else 1)


@dataclass(frozen=True)
class Judgement:
    """How budgets were kept: a line for each that is broken, and for each beyond which a change is
    that noise alone can explain."""

    broken: Sequence[str] = ()
    undecided: Sequence[str] = ()


def judge(comparison: Comparison, budgets: Sequence[Budget]) -> Judgement:
    """Hold every file against every budget.

    UserError for a budget of what one of the runs was never measured for.
    """
    lines: dict[bool, list[str]] = {True: [], False: []}
    for budget in budgets:
        for change in judged_by(comparison, budget):
            head = f"{budget.option} {limit(budget, change)}: {subject(change)}"
            if without := lacking(comparison, change):
                lines[True].append(f"{head}: {without.folder} has no figure")
            elif change.is_loss and abs(change.change or 0.0) > budget.most:
                lines[change.verdict != "within noise"].append(f"{head}: {said(change)}")
    return Judgement(lines[True], lines[False])


def lacking(comparison: Comparison, change: Change) -> MeasuredRun | None:
    """Return the run without a figure that the other has: the second, or the first where it has
    the model and never scored it."""
    if change.verdict == "only in A":
        return comparison.b
    before = comparison.a
    unscored = change.metric == QUALITY and change.artifact in before.manifest.hashes
    return before if change.verdict == "only in B" and unscored else None


def judged_by(comparison: Comparison, budget: Budget) -> list[Change]:
    """Return the changes that a budget is of; UserError where no file has both figures."""
    runs = comparison.a, comparison.b
    files = {file.name for run in runs for file in run.manifest.files}
    judged = files | {STUDENT} if budget.metric == QUALITY else files
    changes = [
        change
        for change in comparison.changes
        if change.metric == budget.metric and change.artifact in judged
    ]
    if all(change.change is None for change in changes):
        raise UserError(
            f"{budget.option} has nothing to judge: {comparison.a.folder} and "
            f"{comparison.b.folder} have no {budget.metric} of the same file; run "
            f"`pocketfocus {budget.stage}` on both"
        )
    return changes


def subject(change: Change) -> str:
    """Return what a change is of, in words."""
    return f"{change.artifact}{f' on {change.where}' if change.where else ''}, {change.metric}"


def limit(budget: Budget, change: Change) -> str:
    """Return the budget as it was given."""
    return f"{100 * budget.most:g}%" if change.is_relative else f"{budget.most:g}dB"


def said(change: Change) -> str:
    """Return both figures, the change and its interval, in words."""
    unit = f" {change.unit}".rstrip()
    text = f"{figure(change, change.a)} → {figure(change, change.b)}{unit} ({amount(change)}"
    return f"{text}; 95 %: {interval(change)})" if change.interval else f"{text})"


def amount(change: Change) -> str:
    """Return a change in words: a percentage, or a difference in its unit."""
    return "–" if change.change is None else _signed(change, change.change)


def interval(change: Change) -> str:
    """Return the interval of a change in words."""
    return " … ".join(_signed(change, end) for end in change.interval or ()) or "–"


def figure(change: Change, value: float | None) -> str:
    """Return one figure with the digits of its unit."""
    digits = {"MiB": 3, "ms": 2, "dB": 2, "%": 1}.get(change.unit, 4)
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(change: Change, value: float) -> str:
    if change.is_relative:
        percent = 100 * value
        return f"{percent:+.2g} %" if 0 < abs(percent) < SMALL else f"{percent:+z.1f} %"
    return f"{value:+z.{2 if change.unit else 4}f}{f' {change.unit}'.rstrip()}"
