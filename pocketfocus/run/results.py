"""What verify.json and bench.json hold of a file on a device, a row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pocketfocus.run.constants import Size
from pocketfocus.run.rows import FileRow, Row

GateStatus = Literal["pass", "fail", "not-run", "error"]  # error: it ran and gave nothing to judge


class Origin(Row):
    """Where a row comes from; "" for what the device does not tell.

    A browser also tells its processor's cores and its memory, both as far as it lets a page know.
    """

    model: str
    chip: str
    os: str
    cores: int | None = None
    memory_gib: float | None = None
    runtime: str


class GateRow(FileRow):
    """How a file did at one gate.

    Attributes:
        psnr_db: of the worst output, 200 at most (equal to the bit); None when there is none.
        threshold_db: None where the gate has no figure in dB.
        why: why it failed, was not run or gave nothing to judge, or what was found.
    """

    gate: str
    psnr_db: float | None
    threshold_db: float | None
    status: GateStatus
    why: str

    @property
    def place(self) -> tuple[str, ...]:
        """Return what a file of rows has one row of."""
        return *super().place, self.gate


class CallFigures(Row):
    """What one call takes; a first one counts as loading, since runtimes pack weights."""

    load_ms: int | None = None
    run_ms: int | None = None
    peak_rss_mib: int | None = None


class VerifyRow(Origin, CallFigures, GateRow):
    """A row of verify.json; its figures are there for a reference's own networks that ran.

    `photos_sha256` is of the pixels of all photos that a student's file was called with, where its
    figure is of those.
    """

    photos_sha256: str | None = None


class Figures(Row):
    """What was measured of a file, all None where it was not: medians over rounds of loading and
    first call, percentiles of all timed calls, the largest peak of memory."""

    threads: int | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    runs: int | None = None
    peak_rss_mib: float | None = None


MEASURED = tuple(Figures.model_fields)


class Operator(Row):
    """An operator of the graph, or a call of a delegate, with the median of its times."""

    operator: str
    delegated: bool
    p50_ms: float


class Notes(Row):
    """What a device noted beside times: its battery before and after, the median of every operator,
    how many operators go to each unit."""

    battery_percent: tuple[int, int] | None = None
    battery_celsius: tuple[float, float] | None = None
    operators: tuple[Operator, ...] = ()
    compute_plan: dict[str, int] | None = None


class Trend(Row):
    """How a run without a pause went: the medians of its first and last fifth, how many times
    slower it got, and its course, `(seconds, ms)`, the medians of at most 60 equal stretches."""

    seconds: float
    runs: int
    first_p50_ms: float
    last_p50_ms: float
    slower: float | None
    course: tuple[tuple[float, float], ...]


class Measured(Figures, FileRow):
    """The figures of a file, its size, and whether it was measured."""

    bytes: int | None
    notes: Notes | None = None
    status: Literal["measured", "not-run", "failed"]
    why: str


class AtSize(Row):
    """What a file took with photos of another size, (H, W), in a process of its own; `why` it
    made nothing of them, where it did not."""

    size: Size
    p50_ms: float | None
    peak_rss_mib: float | None
    why: str = ""


class BenchRow(Origin, Measured):
    """A row of bench.json; a browser's also tells memory of its own kinds, and of a sustained run.

    `heap_mib` is the peak of the runtime's WebAssembly heap, `browser_memory_mib` the whole page's.
    `photo` is the (H, W) of the photo that nine frames were made of, `sizes` has those of a file's
    sizes that need clearly more than its usual one.
    """

    photo: Size | None = None
    sizes: tuple[AtSize, ...] = ()

    heap_mib: float | None = None
    browser_memory_mib: float | None = None
    sustained: Trend | None = None

    @property
    def is_of_browser(self) -> bool:
        """Return whether a browser sent it, with a sustained run or without."""
        return "sustained" in self.model_fields_set


def idle(rows: Sequence[GateRow | Measured]) -> list[str]:
    """Say of every device that executed none of what it has rows of, which files and why."""
    found: dict[str, list[GateRow | Measured]] = {}
    for row in rows:
        found.setdefault(row.device, []).append(row)
    said = []
    for device, own in found.items():
        if all(row.status == "not-run" for row in own):
            first, *others = dict.fromkeys(row.artifact for row in own)
            more = f" and {len(others)} more" if others else ""
            said.append(f"{first}{more} on {device}: {own[0].why}")
    return said
