"""Scores of single images, kept in a file while an evaluation runs, so that it can go on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pocketfocus.benchmarks.perceptual import Perceptual
from pocketfocus.run.cache import Kept
from pocketfocus.run.metrics import masked_gain, psnr, restored_detail, ssim, vif
from pocketfocus.run.rows import Row, part_of

EVERY_S = 2.0  # what a kill may cost; the whole file is written each time


class Score(NamedTuple):
    """How near a made image is to the true one.

    Two are of the places where the truth is sharper than the photo (`sharper_places`): PSNR over
    repeating the photo there, and the share of the missing detail that was restored. Both are None
    for an image without such places; the last two where VGG16's weights were not given.
    """

    psnr_db: float
    ssim: float
    sharper_gain_db: float | None = None
    restored: float | None = None
    vif: float | None = None
    lpips: float | None = None
    dists: float | None = None


def score_of(
    made: Tensor,
    truth: Tensor,
    photo: Tensor,
    most_db: float,
    places: Tensor | None,
    perceptual: Perceptual | None = None,
) -> Score:
    """Score an image [1, 3, H, W] made of a photo against the true one; PSNR is `most_db` at most.

    All are in [-1, 1] and of one size; `places` are the `sharper_places` of photo and truth.
    """
    gained = restored = None
    if places is not None:
        gained = masked_gain(made, truth, photo, places)
        restored = restored_detail(made, truth, photo, places)
    return Score(
        min(most_db, psnr(made, truth)),
        ssim(made, truth),
        gained,
        restored,
        vif(made, truth),
        perceptual.lpips(made, truth) if perceptual else None,
        perceptual.dists(made, truth) if perceptual else None,
    )


Scores = dict[int, Score]


class Call(Row):
    """What a model made of one photo: a score by output position, and the `FocusAccuracy` of the
    stack, where it has any.
    """

    scene: int
    model: str
    position: int
    scores: Scores
    focus_share: float | None = None
    focus_error: float | None = None


def no_worse(calls: Iterable[Call], than: str) -> dict[str, float]:
    """Return by model in which share of images off the diagonal, of those that `than` made too, its
    PSNR is at least that of `than`."""
    images: dict[str, dict[tuple[int, int, int], float]] = defaultdict(dict)
    for call in calls:
        for output, score in call.scores.items():
            if output != call.position:
                images[call.model][call.scene, call.position, output] = score.psnr_db
    other = images[than]
    shared = {model: found.keys() & other.keys() for model, found in images.items()}
    return {
        model: sum(images[model][at] >= other[at] for at in places) / len(places)
        for model, places in shared.items()
        if places
    }


class Ledger:
    """The calls made so far; with a path also those of an interrupted evaluation of that key."""

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        self._kept = None if path is None else Kept(path, key)
        found = self._kept.fields.get("calls", []) if self._kept else []
        calls = (part_of(f"{path}, call {n + 1}", Call, each) for n, each in enumerate(found))
        self._calls = {(each.scene, each.model, each.position): each for each in calls}
        self.save()

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, call: tuple[int, str, int]) -> bool:
        return call in self._calls

    def add(self, call: Call) -> None:
        """Keep a call; UserError when the file cannot be written."""
        self._calls[call.scene, call.model, call.position] = call
        if time.monotonic() - self._saved >= EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the file, if there is one; UserError when it cannot be written."""
        if self._kept is not None:
            self._kept.save(calls=[call.as_json() for call in self])
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the evaluation is finished."""
        if self._kept is not None:
            self._kept.path.unlink(missing_ok=True)
