"""What was measured of a run, read from its files: the one place that knows their rows' fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile
from zlib import error

import numpy as np

from pocketfocus.benchmarks.checks import STACKS_FILE, Pixels
from pocketfocus.benchmarks.evaluation import Evaluation, evaluation_of
from pocketfocus.benchmarks.gates import STUDENT, parity_rows
from pocketfocus.benchmarks.latency import BENCH_FILE
from pocketfocus.benchmarks.samples import Scenes, Times, are_of, read_times
from pocketfocus.benchmarks.verify import VERIFY_FILE
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Manifest, load_manifest
from pocketfocus.run.results import BenchRow, VerifyRow
from pocketfocus.run.rows import F, read_current

# What numpy raises for an .npz that is cut short, damaged, locked or packed in another way.
UNREADABLE = (OSError, EOFError, ValueError, SyntaxError, KeyError, RuntimeError, BadZipFile, error)
PARTIAL = re.compile(r"at positions ([\d, ]+) only")  # in `why`


@dataclass(frozen=True)
class Timing:
    """A measured row of bench.json; `times` are its single calls, where they were kept."""

    row: BenchRow
    p50_ms: float
    times: Times

    @property
    def machine(self) -> str:
        """Where it was measured, in words, as far as the device told."""
        return ", ".join(filter(None, (self.row.device, self.row.model, self.row.chip)))


@dataclass(frozen=True)
class MeasuredRun:
    """A run and all that was measured of it; what was not is empty."""

    folder: Path
    manifest: Manifest
    bench: Sequence[BenchRow] = ()
    timings: Sequence[Timing] = ()
    gates: Sequence[VerifyRow] = ()
    evaluation: Evaluation = field(default_factory=lambda: Evaluation((), ()))
    scenes: Mapping[str, Scenes] = field(default_factory=dict)
    stacks: Mapping[str, Pixels] = field(default_factory=dict)

    @property
    def parities(self) -> list[VerifyRow]:
        """The rows of verify.json that compare outputs."""
        return parity_rows(self.gates)


def read_run(folder: Path) -> MeasuredRun:
    """Return a run with what was measured of it; UserError for a file that cannot be read."""
    manifest = load_manifest(folder)
    files = manifest.hashes_in(folder)
    bench = rows_of(folder / BENCH_FILE, BenchRow, files)
    gates = rows_of(folder / VERIFY_FILE, VerifyRow, files)
    run = (folder, manifest, bench, timings(bench, read_times(folder)), gates)
    evaluation = evaluation_of(folder, manifest, files)
    return MeasuredRun(*run, *evaluation, shown_stacks(folder, gates))


def rows_of(path: Path, kind: type[F], files: Mapping[str, str]) -> list[F]:
    """Return the rows of a stage's file about `files`, none where the stage did not run."""
    return read_current(path, kind, files) if path.exists() else []


def timings(rows: Sequence[BenchRow], kept: Mapping[tuple[str, ...], Times]) -> list[Timing]:
    """Return the measured rows, with their calls where the figures were made of those."""
    found = []
    for row in rows:
        if row.p50_ms is not None:
            times = kept.get(row.place, ())
            is_own = are_of(times, row.runs or 0, row.p50_ms)
            found.append(Timing(row, row.p50_ms, times if is_own else ()))
    return found


def positions_of(row: VerifyRow) -> str:
    """Return from which positions alone a gate's figure is, "" for all."""
    partial = PARTIAL.search(row.why)
    return partial[1] if partial else ""


def shown_stacks(folder: Path, gates: Sequence[VerifyRow]) -> dict[str, Pixels]:
    """Return the pictures that verify kept, without those of files that current gates do not tell
    of: those are of an older student."""
    verified = {row.artifact for row in gates}
    known = verified | {STUDENT, "photo"} if verified else set()
    return {name: stack for name, stack in stacks_of(folder / STACKS_FILE).items() if name in known}


def same_photo(one: Mapping[str, Pixels], other: Mapping[str, Pixels]) -> bool:
    """Return whether stacks are known to be made of one photo."""
    first, second = one.get("photo"), other.get("photo")
    return first is not None and second is not None and np.array_equal(first, second)


def stacks_of(path: Path) -> dict[str, Pixels]:
    """Return the pictures that verify kept: `photo` [H,W,3], and stacks [9,H,W,3] by name."""
    if not path.exists():
        return {}
    try:
        with np.load(path) as kept:
            stacks = {name: kept[name] for name in kept.files}
    except UNREADABLE as reason:
        raise UserError(f"{path} cannot be read ({reason}): run verify again") from reason
    for name, stack in stacks.items():
        if stack.dtype != np.uint8 or stack.shape[-1:] != (3,) or not 3 <= stack.ndim <= 4:
            raise UserError(f"{path} holds no pictures as {name}: run verify again")
    return stacks
