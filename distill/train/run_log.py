"""What there is to see of a training: a bar or lines, train.jsonl, and TensorBoard's files.

A resumed training continues both logs without a row or a point twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from accelerate.tracking import TensorBoardTracker
from torch import Tensor

from pocketfocus.distill.train.checkpoint import Counters
from pocketfocus.photos.images import to_uint8
from pocketfocus.run.files import write_atomic
from pocketfocus.run.progress import console, progress_bar

LOG, BOARD = "train.jsonl", "tensorboard"
REPORT_SECONDS = 60.0  # between lines where the progress bar cannot be shown
GREY = 0.0  # of [-1, 1]: where the input row has no photo


class Timer:
    """Says once every so many seconds that it is time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        """Return whether the time has come, and if so count anew."""
        now = time.monotonic()
        if now - self._last <= self.seconds:
            return False
        self._last = now
        return True


class RunLog:
    """The log of a training that stands at `step`; later rows, of a killed sitting, are dropped.

    With `enabled` False (all processes but the main one) nothing is written or said.
    """

    def __init__(self, folder: Path, step: int, description: str, enabled: bool = True) -> None:
        self.description, self.enabled = description, enabled
        self._bar, self._lines = progress_bar(), Timer(REPORT_SECONDS)
        self._task = self._bar.add_task(description, total=1000, visible=enabled)
        self._samples, self._logged = 0, time.monotonic()  # since the last row, and when it was
        if enabled:
            _drop_rows_after(folder / LOG, step)
            self._rows = open(folder / LOG, "a", encoding="utf-8")  # noqa: SIM115 see __exit__
            self._board = TensorBoardTracker(BOARD, folder, purge_step=step + 1)
            self._board.start()

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self.enabled:
            self._rows.close()
            self._board.finish()

    def show(self, at: Counters, progress: float, loss: float, samples: int) -> None:
        """Show a step that took so many samples, after which `progress` of the budget is spent."""
        self._samples += samples
        text = f"{self.description}: {self._pace:.3g} samples/s"
        self._bar.update(self._task, completed=int(1000 * progress), description=text)
        if self._bar.disable and self.enabled and self._lines.due():
            left = at.minutes * (1 - progress) / progress
            shown = f"{left:.0f} minutes" if left >= 1 else f"{60 * left:.0f} seconds"
            console.print(f"{text}, step {at.step}, loss {loss:.4g}, {shown} left")

    def row(self, at: Counters, values: Mapping[str, float]) -> None:
        """Append a row to train.jsonl, and its values to TensorBoard."""
        row = {"minutes": round(at.minutes, 3), **values, "samples_per_s": round(self._pace, 3)}
        self._samples, self._logged = 0, time.monotonic()
        if self.enabled:
            self._rows.write(json.dumps({"step": at.step, **row}) + "\n")
            self._rows.flush()
            self._board.log(row, at.step)

    @property
    def _pace(self) -> float:
        return self._samples / max(time.monotonic() - self._logged, 1e-9)

    def pictures(self, step: int, images: Mapping[str, Tensor]) -> None:
        """Add images [3,H,W] in [-1,1] to TensorBoard."""
        if self.enabled:
            pixels = {name: to_uint8(image[None].cpu()) for name, image in images.items()}
            self._board.log_images(pixels, step, dataformats="NHWC")


def stack_picture(truth: Tensor, estimate: Tensor, position: int | None = None) -> Tensor:
    """Lay out stacks [T,3,H,W] as rows of an image: the input at its position, truth, estimate.

    [3,3·H,T·W]; without a position there is no input row, [3,2·H,T·W].
    """
    rows = [truth, estimate.to(truth)]
    if position is not None:
        given = torch.full_like(truth, GREY)
        given[position] = truth[position]
        rows.insert(0, given)
    return torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)


def _drop_rows_after(path: Path, step: int) -> None:
    """Leave the rows up to `step`; a half-written last line goes too."""
    lines, kept = path.read_text(encoding="utf-8").splitlines() if path.exists() else [], []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    if len(kept) < len(lines):
        with write_atomic(path) as scratch:
            scratch.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
