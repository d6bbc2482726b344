"""What figures were made of: every timed call beside bench.json, every scene beside evaluate.json.

bench.json holds percentiles and evaluate.json means. Whether two of them differ by more than noise
is told by what they were made of, which is kept in a file of its own beside each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

import numpy as np

from pocketfocus.benchmarks.scores import Call, Score
from pocketfocus.run.files import read_json, sha256, write_json
from pocketfocus.run.rows import FileRow, Row, read_rows

TIMES_FILE = "bench.samples.json"

Times = tuple[tuple[float, ...], ...]
"""Milliseconds of every timed call, a tuple a round; each round was a fresh process."""


class TimesRow(FileRow):
    """A row of bench.samples.json."""

    rounds_ms: Times


class Scene(Row):
    """A row of an evaluation's scenes: means of a model on one scene off the diagonal."""

    model: str
    scene: int
    psnr_db: float
    ssim: float


Scenes = Mapping[int, Scene]


def read_times(folder: Path) -> dict[tuple[str, ...], Times]:
    """Return the kept times by artifact and device; none where the file is absent."""
    path = folder / TIMES_FILE
    if not path.exists():
        return {}
    return {row.place: row.rounds_ms for row in read_rows(path, TimesRow)}


def are_of(times: Times, runs: int, p50_ms: float) -> bool:
    """Return whether these are the calls that a row's figures were made of."""
    pooled = [ms for one in times for ms in one]
    return len(pooled) == runs and abs(float(np.median(pooled)) - p50_ms) < 1e-3


def scenes_file(evaluation: Path) -> Path:
    """Return where the scenes' scores of an evaluation are kept."""
    return evaluation.with_name(f"{evaluation.stem}.samples.json")


def keep_scenes(evaluation: Path, calls: Iterable[Call]) -> None:
    """Write every scene's scores beside an evaluation, which they name by its hash."""
    found: dict[tuple[str, int], list[Score]] = defaultdict(list)
    for call in calls:
        off = [score for output, score in call.scores.items() if output != call.position]
        found[call.model, call.scene] += off
    rows = [
        Scene(
            model=model,
            scene=scene,
            psnr_db=fmean(score.psnr_db for score in scores),
            ssim=fmean(score.ssim for score in scores),
        )
        for (model, scene), scores in found.items()
        if scores
    ]
    content = {"of": sha256(evaluation), "rows": [row.as_json() for row in rows]}
    write_json(scenes_file(evaluation), content)


def read_scenes(evaluation: Path) -> Mapping[str, Scenes]:
    """Return the kept scores by model and scene; none where they are absent or of another file."""
    path = scenes_file(evaluation)
    if not path.exists() or read_json(path).get("of") != sha256(evaluation):
        return {}
    found: dict[str, dict[int, Scene]] = defaultdict(dict)
    for row in read_rows(path, Scene):
        found[row.model][row.scene] = row
    return found
