"""Does a file fit a phone: its peak memory against what the phone lets an app use.

The limits and their sources are data, in phones.json. Peak memory measured on another machine
counts its whole process, so it is an upper bound of what the file needs on a phone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketfocus.benchmarks.tables import markdown
from pocketfocus.mobile_harness.device import PYTORCH
from pocketfocus.run.results import BenchRow

TABLE = Path(__file__).parent / "phones.json"
TIGHT = 0.7  # of the limit: the rest is left to the app's own pictures and views
MIB = 2**20


@dataclass(frozen=True)
class Phone:
    """One phone or class of phones, MiB throughout.

    Attributes:
        name: as it is sold.
        chip: "" for a class of phones.
        ram_mib: memory of the phone.
        limit_mib: what an app may use before it is killed; None where there is no fixed limit.
        entitled_mib: the same with iOS's increased-memory-limit entitlement; None if not known.
        kind: how the source knows the limit, a word of the table's `kinds`.
        source: where the limit is from (the memory, where there is no limit).
        ram_kind: how the source of the memory knows it.
        ram_source: where the memory is from.
    """

    name: str
    chip: str
    ram_mib: int
    limit_mib: int | None
    entitled_mib: int | None
    kind: str
    source: str
    ram_kind: str
    ram_source: str


def kinds() -> dict[str, str]:
    """Return what the words mean that say how a source knows its figure."""
    return dict(json.loads(TABLE.read_text(encoding="utf-8"))["kinds"])


def phones() -> list[Phone]:
    """Return the table, in its order."""
    return [Phone(**row) for row in json.loads(TABLE.read_text(encoding="utf-8"))["phones"]]


def verdict(phone: Phone, file_bytes: int, peak_mib: float | None) -> str:
    """Return `fits`, `tight` (above 70 % of the limit), `will be killed`, or `not known`.

    Without a measured peak only a file larger than the limit is decided: weights are held in
    memory. Without a limit only what exceeds the phone's whole memory is.
    """
    need = max(file_bytes / MIB, peak_mib or 0.0)
    if need > (phone.limit_mib or phone.ram_mib):
        return "will be killed"
    if peak_mib is None or phone.limit_mib is None:
        return "not known"
    return "tight" if need > TIGHT * phone.limit_mib else "fits"


@dataclass(frozen=True)
class Fit:
    """Whether a file fits phones, by their names, and the device that measured its peak memory."""

    artifact: str
    precision: str
    peak_mib: float | None
    device: str
    verdicts: dict[str, str]


def fits(bench: Sequence[BenchRow]) -> list[Fit]:
    """Judge every file; of several devices the one with the largest measured peak counts."""
    table = phones()
    files: dict[str, Fit] = {}
    for row in bench:
        name, size, peak = row.artifact, row.bytes, row.peak_rss_mib
        if row.target == PYTORCH or size is None:
            continue
        if name not in files or (peak or 0) > (files[name].peak_mib or 0):
            found = {phone.name: verdict(phone, size, peak) for phone in table}
            files[name] = Fit(name, row.precision, peak, row.device, found)
    return list(files.values())


def markdown_table() -> str:
    """Return the table of docs/phones.md: `python -m pocketfocus.benchmarks.phones`."""

    def cell(mib: int | None, kind: str, source: str) -> str:
        return "–" if mib is None else f"{mib} ([{kind}]({source}))"

    rows = [
        [
            phone.name,
            phone.chip or "–",
            cell(phone.ram_mib, phone.ram_kind, phone.ram_source),
            cell(phone.limit_mib, phone.kind, phone.source),
            cell(phone.entitled_mib, phone.kind, phone.source),
        ]
        for phone in phones()
    ]
    header = ["phone", "chip", "memory MiB", "limit MiB", "with the entitlement"]
    return markdown(header, rows)


if __name__ == "__main__":
    print(markdown_table())
