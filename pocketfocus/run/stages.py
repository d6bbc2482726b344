"""Stages that are skipped when their inputs have not changed.

A stage is a value: a name, what its result depends on, what it writes, and how it runs. Its record
in DIR/stages.json holds the key of those inputs and the hash of every output; a stage is skipped
only when both still agree, so a changed, damaged or missing file is made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import pocketfocus
from pocketfocus.run.cache import source_hash
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import key_of, read_json, sha256, write_json
from pocketfocus.run.paths import below
from pocketfocus.run.progress import say
from pocketfocus.run.rows import Row, part_of

RECORD = "stages.json"


class Record(Row):
    """What stages.json says of a stage that ran: its key, hashes of its outputs, how long."""

    key: str
    outputs: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    `inputs()` gives the JSON-able values that the result depends on; it is asked only after the
    stages before have run. `code` names the folders whose sources count among the inputs, beside
    the core and the versions of the tools. `run()` writes `outputs`: paths below the run's folder,
    or glob patterns of what it may write; where it returns lines of text, these say what it could
    not do, and it is not done: the next run tries again.
    """

    name: str
    inputs: Callable[[], dict[str, object]]
    code: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[], Sequence[str] | None]

    def key(self) -> str:
        """Return the hash of everything the result depends on."""
        return key_of(code=source_hash(*self.code), tools=tools(), **self.inputs())


def run_stages(folder: Path, stages: Iterable[Stage]) -> list[str]:
    """Run what is not up to date, noting each stage on the console; names of those that ran.

    UserError in the end for what one of them could not do.
    """
    ran, left = [], []
    for stage in stages:
        why = out_of_date(folder, stage)
        if not why:
            say(f"{stage.name}: unchanged, skipped")
            continue
        say(f"{stage.name}: {why}")
        started = time.monotonic()
        undone = stage.run()
        seconds = time.monotonic() - started
        ran.append(stage.name)
        if undone:
            left += [f"{stage.name} is not finished: {line}" for line in undone]
            say(left[-1])
            continue
        remember(folder, stage, seconds)
        say(f"{stage.name}: done in {seconds:.1f} s")
    if left:
        raise UserError(f"{left[0]}; the same command tries it again")
    return ran


def out_of_date(folder: Path, stage: Stage) -> str:
    """Return why the stage has to run, or "" when inputs and outputs are as recorded."""
    known = _records(folder).get(stage.name)
    if known is None:
        return "running"
    if known.key != stage.key():
        return "inputs have changed, running again"
    for name, digest in known.outputs.items():
        path = below(folder, name)
        if not path.exists():
            return f"{name} is missing, running again"
        if sha256(path) != digest:
            return f"{name} is not the file that was written (its hash differs), running again"
    return ""


def remember(folder: Path, stage: Stage, seconds: float) -> None:
    """Record the stage's inputs and the hashes of its outputs; UserError when one is missing."""
    outputs: dict[str, str] = {}
    for pattern in stage.outputs:
        found = sorted(folder.glob(pattern))
        if not found and "*" not in pattern:
            raise UserError(f"stage {stage.name} ended without writing {pattern} in {folder}")
        outputs |= {path.relative_to(folder).as_posix(): sha256(path) for path in found}
    record = Record(key=stage.key(), outputs=outputs, seconds=round(seconds, 1))
    records = {**_records(folder), stage.name: record}
    stages = {name: each.as_json() for name, each in records.items()}
    write_json(folder / RECORD, {"stages": stages})


def _records(folder: Path) -> dict[str, Record]:
    path = folder / RECORD
    stages = read_json(path).get("stages", {}) if path.exists() else {}
    if not isinstance(stages, dict):
        raise UserError(f"{path} holds no stages: delete it and run again")
    return {name: part_of(f"{path}, {name}", Record, each) for name, each in stages.items()}


@cache
def tools() -> dict[str, str]:
    """Versions of the packages that this one requires: their behaviour ends up in the files."""
    required = map(Requirement, metadata.requires(pocketfocus.__name__) or ())
    return {each.name: metadata.version(each.name) for each in required if each.marker is None}


def hashes(*paths: Path | None) -> list[str]:
    """Return the SHA-256 of each file or folder that exists; "" for one that does not."""
    return [sha256(p) if p is not None and p.exists() else "" for p in paths]
