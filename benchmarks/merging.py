"""Rows that another device sent, merged into what a run's folder already holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pocketfocus.files import Row, read_rows, write_rows

OF_DEVICES = "sha256"
"""The field of every row that a device sent: the hash of the file that it ran."""


def merge_rows(path: Path, rows: Sequence[Row], current: Mapping[str, str]) -> list[Row]:
    """Write `rows` into `path` beside what is there, and return all.

    A new row takes the place of the one of the same artifact, device and gate. Rows of other
    devices stay, unless they tell of a file whose SHA-256 is no longer the one in `current`
    (artifact -> hash).
    """
    new = {_key(row) for row in rows}
    kept = [
        row
        for row in (read_rows(path) if path.exists() else [])
        if _key(row) not in new and not _outdated(row, current)
    ]
    merged = [*kept, *rows]
    write_rows(path, merged)
    return merged


def with_devices(path: Path, rows: Sequence[Row], current: Mapping[str, str]) -> list[Row]:
    """`rows`, a stage's whole result, and what devices sent of files that are still the same."""
    new = {_key(row) for row in rows}
    sent = [row for row in (read_rows(path) if path.exists() else []) if OF_DEVICES in row]
    return [*rows, *(r for r in sent if _key(r) not in new and not _outdated(r, current))]


def _key(row: Row) -> tuple[str, str, str | None]:
    return row["artifact"], row["device"], row.get("gate")


def _outdated(row: Row, current: Mapping[str, str]) -> bool:
    return OF_DEVICES in row and current.get(row["artifact"]) != row[OF_DEVICES]
