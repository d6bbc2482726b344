"""Does a file fit a phone: its peak memory against what the phone lets an app use.

The limits and their sources are data, in phones.json. Peak memory measured on another machine
counts its whole process, so it is an upper bound of what the file needs on a phone. A file is
judged by the largest of all the sizes of photos that it takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pocketfocus.benchmarks.tables import markdown
from pocketfocus.mobile_harness.device import PYTORCH
from pocketfocus.run.constants import Size
from pocketfocus.run.manifest import Artifact, Manifest, renders
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


def verdict(phone: Phone, least_bytes: int, peak_mib: float | None) -> str:
    """Return `fits`, `tight` (above 70 % of the limit), `will be killed`, or `not known`.

    Without a peak only what is larger than the limit at least is decided. Without a limit only what
    exceeds the phone's whole memory is.
    """
    need = max(least_bytes / MIB, peak_mib or 0.0)
    if need > (phone.limit_mib or phone.ram_mib):
        return "will be killed"
    if peak_mib is None or phone.limit_mib is None:
        return "not known"
    return "tight" if need > TIGHT * phone.limit_mib else "fits"


How = Literal["measured", "estimated", "at least", "died there"]
UNKNOWN = ("at least", "died there")


@dataclass(frozen=True)
class Need:
    """The MiB that a file needs with photos of a size, and how that is known.

    What was not measured at a size is estimated from what was at the usual one: all that it took
    beside the file, activations above all, grows with the pixels. Where nothing was measured, file,
    inputs and outputs are the least; where it was tried and died, what the usual size takes is too.
    """

    size: Size
    mib: float
    how: How


@dataclass(frozen=True)
class Fit:
    """Whether a file fits phones, by their names, with photos of every size that it takes.

    `peak_mib` was measured at the usual size, by `device`; `largest` is what decides.
    """

    artifact: str
    precision: str
    peak_mib: float | None
    device: str
    largest: Need
    verdicts: dict[str, str]


def fits(bench: Sequence[BenchRow], manifest: Manifest) -> list[Fit]:
    """Judge every file, and every pair that makes nine frames; of several devices the one with the
    largest measured peak counts, and before it one where the file died of a larger size."""
    needs: dict[str, tuple[BenchRow, Need]] = {}
    students = {pair.name: pair.student.name for pair in manifest.pairs}
    known = {artifact.name: artifact for artifact in manifest.files}
    for row in sorted(bench, key=lambda row: row.artifact in students):
        name = row.artifact
        if row.target == PYTORCH or row.bytes is None:
            continue
        if name in needs and weight(row) <= weight(needs[name][0]):
            continue
        if name in students:
            needs[name] = row, with_frames(row, needs.get(students[name]))
        elif name in known:
            every = needs_of(row, known[name], manifest)
            needs[name] = row, max(every, key=lambda need: (need.how == "died there", need.mib))
    table = phones()
    return [judged(row, need, table) for row, need in needs.values()]


def weight(row: BenchRow) -> tuple[bool, float]:
    """Return what sorts the rows of a file on several devices, what decides last."""
    return any(each.why for each in row.sizes), row.peak_rss_mib or 0.0


def needs_of(row: BenchRow, artifact: Artifact, manifest: Manifest) -> list[Need]:
    """Return what a file needs at each of its sizes, the usual one first."""
    file, peak = (row.bytes or 0) / MIB, row.peak_rss_mib
    usual = math.prod(manifest.size)
    found = {each.size: each.peak_rss_mib for each in row.sizes}
    died = {each.size for each in row.sizes if each.why}
    specs = (*artifact.inputs, *artifact.outputs)
    tensors = 4 * sum(math.prod(spec.shape) for spec in specs) / MIB
    needs = []
    if manifest.render and renders(artifact.name):
        how: How = "measured" if peak else "at least"
        return [Need(manifest.render.tile, peak or file + tensors, how)]
    for size in (manifest.size, *filter(artifact.takes, manifest.sizes[1:])):
        more = math.prod(size) / usual
        measured = peak if size == manifest.size else found.get(size)
        if size in died:
            needs.append(Need(size, max(peak or 0.0, file + tensors * more), "died there"))
        elif measured is not None:
            needs.append(Need(size, measured, "measured"))
        elif peak is not None:
            needs.append(Need(size, file + max(0.0, peak - file) * more, "estimated"))
        else:
            needs.append(Need(size, file + tensors * more, "at least"))
    return needs


def with_frames(row: BenchRow, student: tuple[BenchRow, Need] | None) -> Need:
    """Return what a pair needs: what nine frames took, and what a larger size takes more of the
    student's file."""
    photo, peak = row.photo or (0, 0), row.peak_rss_mib
    if peak is None:
        return Need(photo, (row.bytes or 0) / MIB, "at least")
    if student is None or student[0].peak_rss_mib is None:
        return Need(photo, peak, "measured")
    if student[1].how == "died there":
        return Need(student[1].size, peak, "died there")
    more = student[1].mib - student[0].peak_rss_mib
    return Need(photo, peak + more, "estimated") if more > 0 else Need(photo, peak, "measured")


def judged(row: BenchRow, need: Need, table: Sequence[Phone]) -> Fit:
    """Return a row's verdicts on phones, by what it needs most."""
    known = None if need.how in UNKNOWN else need.mib
    least = max(row.bytes or 0, math.ceil(need.mib * MIB))
    found = {phone.name: verdict(phone, least, known) for phone in table}
    return Fit(row.artifact, row.precision, row.peak_rss_mib, row.device, need, found)


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
