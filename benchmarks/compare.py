"""Two runs side by side: what changed of their files, and whether that is beyond noise.

Sizes, delegate coverage and parity repeat exactly, so that any change is one. Latency and quality
are held against an interval (`noise`), where the files hold what they were made of. What is one
figure alone, such as a peak of memory, is shown, and said to be too little to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal, TypeVar

from pocketfocus.benchmarks.baselines import COPY
from pocketfocus.benchmarks.evaluation import Cell, Means
from pocketfocus.benchmarks.measured import MeasuredRun, Timing, positions_of
from pocketfocus.benchmarks.noise import (
    FEWEST_ROUNDS,
    FEWEST_SCENES,
    Interval,
    mean_change,
    median_change,
)
from pocketfocus.run.constants import size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import renders
from pocketfocus.run.results import VerifyRow

Verdict = Literal[
    "same", "better", "worse", "within noise", "too little to judge", "only in A", "only in B"
]
SIZE, LATENCY, QUALITY = "size", "latency p50", "quality"
MIB, MS, DB, SHARE, INDEX = "MiB", "ms", "dB", "%", ""
BASELINES = (COPY, "blur")
SAME_DB = 1e-6  # between two means over the same scores
K = TypeVar("K")
T = TypeVar("T")
Both = tuple[float | None, float | None]
NEITHER: Both = (None, None)
SINGLE: tuple[tuple[str, str, Callable[[Timing], float | None]], ...] = (
    ("load", MS, lambda each: each.row.load_ms),
    ("first call", MS, lambda each: each.row.first_ms),
    ("peak memory", MIB, lambda each: each.row.peak_rss_mib),
)


@dataclass(frozen=True)
class Change:
    """One figure of both runs.

    Attributes:
        artifact: the file, or the model.
        where: the device, or the stacks; "" for what is the file's own.
        metric: what is compared.
        unit: of `a` and `b`.
        a: the figure of the first run; None where it has none.
        b: the figure of the second run.
        change: relative for MiB and ms, else the difference.
        interval: of `change`, 95 %; None where the files hold too little, or where it is exact.
        verdict: which way, and whether beyond noise.
        why: what the verdict rests on, where that is not the interval.
    """

    artifact: str
    where: str
    metric: str
    unit: str
    a: float | None
    b: float | None
    change: float | None = None
    interval: Interval | None = None
    verdict: Verdict = "same"
    why: str = ""

    @property
    def is_relative(self) -> bool:
        """Whether the change is a share of the first run's figure."""
        return self.unit in (MIB, MS)

    @property
    def is_loss(self) -> bool:
        """Whether the second run's figure is the worse one."""
        return bool(self.change) and (self.change > 0) == self.is_relative  # type: ignore[operator]


@dataclass(frozen=True)
class Comparison:
    """Two runs and their changes; `notes` say what could not be compared at all."""

    a: MeasuredRun
    b: MeasuredRun
    changes: Sequence[Change]
    notes: Sequence[str]

    def rows(self) -> list[dict[str, object]]:
        """Return the changes as JSON-able rows."""
        return [vars(change) | {"relative": change.is_relative} for change in self.changes]


def compare(a: MeasuredRun, b: MeasuredRun) -> Comparison:
    """Return how the files of `b` differ from those of `a`.

    UserError for what cannot be compared: files for other sizes, measured on other devices, with
    other threads, or on other photos.
    """
    check_photos(a, b)
    check_devices(a, b)
    check_scenes(a, b)
    changes = [*file_changes(a, b), *timing_changes(a, b), *parity_changes(a, b)]
    return Comparison(a, b, [*changes, *quality_changes(a, b)], list(notes(a, b)))


def check_photos(a: MeasuredRun, b: MeasuredRun) -> None:
    """Refuse files that take other sizes, and parity on other photos or positions."""
    if a.manifest.size != b.manifest.size:
        raise refused(
            a, b, "take photos of", size_text(a.manifest.size), size_text(b.manifest.size)
        )
    for one, other in pairs(by_gate(a), by_gate(b)):
        if one and other and both_know(one, other) and one.photos_sha256 != other.photos_sha256:
            raise UserError(
                f"{one.artifact} on {one.device} was verified on other photos in {a.folder} than "
                f"in {b.folder}: run verify on both with the same --photos"
            )
        sides = [positions_of(each) or "all positions" for each in (one, other) if each]
        if one and other and sides[0] != sides[1]:
            raise refused(a, b, f"were verified ({one.artifact}) from", *sides)


def check_devices(a: MeasuredRun, b: MeasuredRun) -> None:
    """Refuse latencies of other devices, with another number of threads, or a photo of another
    size."""
    known = [{each.row.device: each.machine for each in run.timings} for run in (a, b)]
    if all(known) and not known[0].keys() & known[1].keys():
        raise refused(a, b, "were timed on", *(", ".join(sorted(side)) for side in known))
    for one, other in pairs(*known):
        if one and other and one != other:
            raise refused(a, b, "were timed on", one, other)
    for first, second in pairs(by_place(a), by_place(b)):
        if not first or not second:
            continue
        rows = first.row, second.row
        if rows[0].threads != rows[1].threads:
            sides = (f"{row.threads} threads" for row in rows)
            raise refused(a, b, f"were timed ({rows[0].artifact}) with", *sides)
        if rows[0].photo != rows[1].photo:
            sides = (size_text(row.photo) if row.photo else "no size" for row in rows)
            raise refused(a, b, f"were timed ({rows[0].artifact}) with a photo of", *sides)


def check_scenes(a: MeasuredRun, b: MeasuredRun) -> None:
    """Refuse quality on other stacks: repeating the photo scores alike on the same ones only."""
    sides = [evaluated(run) for run in (a, b)]
    if not all(sides):
        return
    if sides[0] != sides[1]:
        raise refused(a, b, "were evaluated on", sides[0], sides[1])
    cells = [{key_of(c): c for c in run.evaluation.cells if c.model == COPY} for run in (a, b)]
    for one, other in pairs(*cells):
        if one is None or other is None or abs(one.psnr_db - other.psnr_db) > SAME_DB:
            raise UserError(
                f"{a.folder} and {b.folder} were evaluated on other photos or positions of "
                f"{sides[0]}: repeating the photo does not score alike; run evaluate on both again"
            )


def evaluated(run: MeasuredRun) -> str:
    """Return on what a run was evaluated, "" when it was not."""
    found = {f"{each.scenes} scenes of {each.stacks}" for each in run.evaluation.means}
    return ", ".join(sorted(found))


def key_of(cell: Cell) -> tuple[str, int, int]:
    """Return what a cell is the score of."""
    return cell.stacks, cell.input_position, cell.output_position


def refused(a: MeasuredRun, b: MeasuredRun, how: str, one: str, other: str) -> UserError:
    """Return the one line for two runs that cannot be compared."""
    return UserError(
        f"the files of {a.folder} {how} {one}, those of {b.folder} {how} {other}: measure both "
        "alike, then compare them"
    )


def pairs(a: Mapping[K, T], b: Mapping[K, T]) -> Iterator[tuple[T | None, T | None]]:
    """Yield what two runs have by each name, in the first one's order."""
    for name in dict.fromkeys([*a, *b]):
        yield a.get(name), b.get(name)


def by_place(run: MeasuredRun) -> dict[str, Timing]:
    """Return timings by artifact and device."""
    return {" on ".join(each.row.place): each for each in run.timings}


def by_gate(run: MeasuredRun) -> dict[str, VerifyRow]:
    """Return parities by artifact, device and gate."""
    return {" on ".join(each.place): each for each in run.parities}


def judged(change: Change, interval: Interval | None = None, lacking: str = "") -> Change:
    """Return a change with its verdict: by the interval, or as `lacking` says that there is none,
    or as it stands, for what repeats exactly."""
    if change.a is None or change.b is None:
        return replace(change, verdict="only in A" if change.b is None else "only in B")
    difference = change.b - change.a
    change = replace(
        change,
        change=(difference / change.a if change.a else 0.0) if change.is_relative else difference,
        interval=interval,
    )
    if not difference:
        return replace(change, verdict="same")
    if interval is None and lacking:
        return replace(change, verdict="too little to judge", why=lacking)
    if interval is not None and min(difference * end for end in interval) <= 0:
        return replace(change, verdict="within noise")
    return replace(change, verdict="worse" if change.is_loss else "better")


def both(one: T | None, other: T | None, figure: Callable[[T], float | None]) -> Both:
    """Return a figure of both sides, None where a side is not there."""
    return (None if one is None else figure(one), None if other is None else figure(other))


def named(one: T | None, other: T | None) -> T:
    """Return the side that is there, for its name."""
    found = one if one is not None else other
    assert found is not None
    return found


def file_changes(a: MeasuredRun, b: MeasuredRun) -> Iterator[Change]:
    """Compare sizes, and how much of a file its backend takes."""
    files = [{f.name: f for f in run.manifest.files} for run in (a, b)]
    for one, other in pairs(*files):
        name = named(one, other).name
        mib = both(one, other, lambda each: each.bytes / 2**20)
        yield judged(Change(name, "", SIZE, MIB, *mib))
        shares = both(
            one, other, lambda each: 100 * each.delegation.share if each.delegation else None
        )
        if shares != NEITHER:
            yield judged(Change(name, "", "delegate coverage", SHARE, *shares))


def timing_changes(a: MeasuredRun, b: MeasuredRun) -> Iterator[Change]:
    """Compare latency by the calls themselves; load, first call and memory, one figure each."""
    for one, other in pairs(by_place(a), by_place(b)):
        row = named(one, other).row
        about = row.artifact, row.device
        interval = median_change(one.times, other.times) if one and other else None
        p50 = both(one, other, lambda each: each.p50_ms)
        yield judged(Change(*about, LATENCY, MS, *p50), interval, few_rounds(one, other))
        for name, unit, figure in SINGLE:
            values = both(one, other, figure)
            if values != NEITHER:
                yield judged(Change(*about, name, unit, *values), None, "one figure a run")


def few_rounds(one: Timing | None, other: Timing | None) -> str:
    """Return why there is no interval of a latency."""
    rounds = min(len(each.times) for each in (one, other) if each)
    if not rounds:
        return "single calls are not kept: run bench again"
    return f"{rounds} round{'s' * (rounds != 1)} of calls, {FEWEST_ROUNDS} tell something"


def both_know(one: VerifyRow, other: VerifyRow) -> bool:
    """Return whether both rows tell on which photos."""
    return one.photos_sha256 is not None and other.photos_sha256 is not None


def parity_changes(a: MeasuredRun, b: MeasuredRun) -> Iterator[Change]:
    """Compare what every gate measured; it repeats exactly where the photos are the same."""
    for one, other in pairs(by_gate(a), by_gate(b)):
        some = named(one, other)
        figures = both(one, other, lambda each: each.psnr_db)
        if figures == NEITHER:
            continue
        about = some.artifact, some.device, f"parity, {some.gate}"
        known = renders(some.artifact) or (one and other and both_know(one, other))
        lacking = "" if known else "rows of verify do not tell on which photos"
        made = judged(Change(*about, DB, *figures), None, lacking)
        if one and other and one.status != other.status:
            verdict: Verdict = "better" if other.status == "pass" else "worse"
            made = replace(made, verdict=verdict, why=f"gate: {one.status} → {other.status}")
        yield made


def quality_changes(a: MeasuredRun, b: MeasuredRun) -> Iterator[Change]:
    """Compare scores against true stacks, scene by scene."""
    for one, other in pairs(by_model(a), by_model(b)):
        some = named(one, other)
        about = some.model, some.stacks
        before, after = (run.scenes.get(some.model, {}) for run in (a, b))
        common = sorted(before.keys() & after.keys())
        few = f"{some.scenes} scene{'s' * (some.scenes != 1)}, {FEWEST_SCENES} tell something"
        if some.scenes >= FEWEST_SCENES:
            few = "scores of single scenes are not kept: run evaluate again"
        for name, unit, score in ((QUALITY, DB, "psnr_db"), ("SSIM", INDEX, "ssim")):
            mean = attrgetter(f"mean_{score}_off_diagonal")
            drawn = mean_change(*([getattr(s[n], score) for n in common] for s in (before, after)))
            figures = both(one, other, mean)
            if figures != NEITHER:
                yield judged(Change(*about, name, unit, *figures), drawn, few)


def by_model(run: MeasuredRun) -> dict[str, Means]:
    """Return means by model, without the baselines, which no run changes."""
    return {each.model: each for each in run.evaluation.means if each.model not in BASELINES}


def notes(a: MeasuredRun, b: MeasuredRun) -> Iterator[str]:
    """Say which stages' figures one of the runs lacks."""
    stages = {
        "bench": [bool(run.timings) for run in (a, b)],
        "verify": [bool(run.parities) for run in (a, b)],
        "evaluate": [bool(run.evaluation.means) for run in (a, b)],
    }
    for stage, there in stages.items():
        without = [str(run.folder) for run, has in zip((a, b), there, strict=True) if not has]
        if without:
            yield f"nothing of {stage}: {' and '.join(without)} did not run it"
