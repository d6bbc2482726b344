"""Scores of single images, kept in a file while an evaluation runs, so that it can go on.

The file holds JSON lines: the key of what is evaluated, then one line a call of a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pocketfocus.run.files import writing_failed
from pocketfocus.run.metrics import masked_gain, psnr, restored_detail, sharper_places, ssim


class Score(NamedTuple):
    """How near a made image is to the true one.

    The last two are of the places where the truth is sharper than the photo (`sharper_places`):
    PSNR over repeating the photo there, and the share of the missing detail that was restored. Both
    are None for an image without such places.
    """

    psnr_db: float
    ssim: float
    sharper_gain_db: float | None = None
    restored: float | None = None


def score_of(made: Tensor, truth: Tensor, photo: Tensor, most_db: float) -> Score:
    """Score an image [1, 3, H, W] made of a photo against the true one; PSNR is `most_db` at most.

    All are in [-1, 1] and of one size.
    """
    figures = (min(most_db, psnr(made, truth)), ssim(made, truth))
    places = sharper_places(photo, truth)
    if places is None:
        return Score(*figures)
    return Score(
        *figures,
        masked_gain(made, truth, photo, places),
        restored_detail(made, truth, photo, places),
    )


Scores = dict[int, Score]


@dataclass(frozen=True)
class Call:
    """What a model made of one photo: a score by output position."""

    scene: int
    model: str
    position: int
    scores: Scores


class Ledger:
    """The calls made so far; with a path also those of an interrupted evaluation of that key."""

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        self._path = path
        self._calls = {(c.scene, c.model, c.position): c for c in _read(path, key)}
        if path is not None:
            self._write("w", {"key": key}, *(asdict(call) for call in self))

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, call: tuple[int, str, int]) -> bool:
        return call in self._calls

    def add(self, call: Call) -> None:
        """Keep a call; UserError when the file cannot be written."""
        self._calls[call.scene, call.model, call.position] = call
        if self._path is not None:
            self._write("a", asdict(call))

    def remove(self) -> None:
        """Delete the file: the evaluation is finished."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, mode: str, *lines: object) -> None:
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise writing_failed(self._path, error) from error


def _read(path: Path | None, key: str) -> Iterator[Call]:
    """Return the whole lines of a file of this key; nothing when it is absent or of another one."""
    if path is None or not path.is_file():
        return
    first, *lines = path.read_text(encoding="utf-8").splitlines() or ["{}"]
    if first != json.dumps({"key": key}):
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the line that was being written
            return
        scores = {int(at): Score(*found) for at, found in row.pop("scores").items()}
        yield Call(**row, scores=scores)
