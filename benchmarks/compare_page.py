"""The page of a comparison: self-contained, with the pictures that differ most first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pocketfocus.benchmarks.budgets import Judgement, amount, figure, interval
from pocketfocus.benchmarks.checks import Pixels
from pocketfocus.benchmarks.compare import Change, Comparison
from pocketfocus.benchmarks.measured import same_photo
from pocketfocus.benchmarks.report import page, picture_uri
from pocketfocus.run.files import write_atomic
from pocketfocus.run.metrics import psnr

SHOWN_PAIRS = 6
GAIN = 8  # of the shown difference
WHITE = 255


@dataclass(frozen=True)
class Pair:
    """The frame of one model that differs most between two runs, [H,W,3] of each."""

    name: str
    frame: int
    a: Pixels
    b: Pixels
    psnr_db: float

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """Both frames and their difference as data URIs, each with what it is."""
        difference = np.abs(self.a.astype(np.int16) - self.b) * GAIN
        third = np.minimum(difference, WHITE).astype(np.uint8)
        return [
            (picture_uri(pixels), what)
            for pixels, what in ((self.a, "A"), (self.b, "B"), (third, "difference"))
        ]


def cells(change: Change) -> list[str]:
    """Return a change as the cells of a table, without its verdict."""
    names = [change.artifact, change.where, change.metric]
    unit = f" {change.unit}".rstrip()
    figures = [f"{figure(change, value)}{unit}" for value in (change.a, change.b)]
    return [*names, *figures, amount(change), interval(change)]


def pairs(comparison: Comparison) -> list[Pair]:
    """Return what differs most, worst first; nothing where the runs kept no stacks in common."""
    found = sorted(_pairs(comparison), key=lambda pair: pair.psnr_db)
    return found[:SHOWN_PAIRS]


def _pairs(comparison: Comparison) -> Iterator[Pair]:
    stacks = comparison.a.stacks, comparison.b.stacks
    if not same_photo(*stacks):
        return
    for name in stacks[0].keys() & stacks[1].keys() - {"photo"}:
        a, b = (side[name] for side in stacks)
        if a.shape != b.shape or a.ndim != 4 or np.array_equal(a, b):
            continue
        scores = [
            psnr(torch.from_numpy(one), torch.from_numpy(other), WHITE)
            for one, other in zip(a.astype(np.float32), b.astype(np.float32), strict=True)
        ]
        worst = int(np.argmin(scores))
        yield Pair(name, worst, a[worst], b[worst], scores[worst])


def write_page(comparison: Comparison, path: Path, judgement: Judgement | None = None) -> None:
    """Write the page; with how budgets were kept, if any were named."""
    text = page("compare.html").render(
        a=comparison.a.folder,
        b=comparison.b.folder,
        judgement=judgement,
        notes=comparison.notes,
        pairs=pairs(comparison),
        gain=GAIN,
        rows=[
            {"cells": cells(change), "verdict": change.verdict, "why": change.why}
            for change in comparison.changes
        ],
    )
    with write_atomic(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
