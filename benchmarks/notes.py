"""What devices note beside times, in words for the report.

Browsers note how calls without a pause went, phones their battery and slowest operators, Core ML
its plan. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pocketfocus.run.results import BenchRow, Notes, Operator, Trend

STEADY = 1.1  # times slower at the end of a sustained run; within it is noise
SLOWEST = 3


def throttles(sustained: Trend | None) -> str:
    """Return `steady`, `slows down` (more than 10 % at the end), or why that is not known."""
    if sustained is None or sustained.slower is None:
        return "not run"
    if sustained.runs < 10:
        return f"too few calls ({sustained.runs})"
    return "slows down" if sustained.slower > STEADY else "steady"


@dataclass(frozen=True)
class Noted:
    """What a device noted while it measured a file, in words; empty where it noted nothing."""

    artifact: str
    device: str
    battery: str
    operators: str
    plan: str


def notes_rows(bench: Sequence[BenchRow]) -> list[Noted]:
    """Return the notes of all rows that have some."""
    return [
        Noted(
            row.artifact,
            row.device,
            battery(row.notes),
            slowest(row.notes.operators),
            plan(row.notes.compute_plan or {}),
        )
        for row in bench
        if row.notes
    ]


def battery(notes: Notes) -> str:
    """Return level and temperature before and after; empty where they were not noted."""
    percent, celsius = notes.battery_percent, notes.battery_celsius
    if percent is None or celsius is None:
        return ""
    return f"{percent[0]} → {percent[1]} %, {celsius[0]:g} → {celsius[1]:g} °C"


def slowest(operators: Sequence[Operator]) -> str:
    """Return the slowest operators and their medians."""
    ranked = sorted(operators, key=lambda each: -each.p50_ms)[:SLOWEST]
    return ", ".join(f"{each.operator} {each.p50_ms:g} ms" for each in ranked)


def plan(units: Mapping[str, int]) -> str:
    """Return how many operators Core ML gives to each unit."""
    return ", ".join(f"{unit}: {count}" for unit, count in units.items())
