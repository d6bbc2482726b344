"""What a training leaves to look at: train.jsonl, and TensorBoard's scalars and pictures beside it.

A resumed training continues both without a row or a point twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from accelerate.tracking import TensorBoardTracker
from torch import Tensor

from pocketfocus.photos.images import to_uint8
from pocketfocus.run.files import write_atomic

LOG, BOARD = "train.jsonl", "tensorboard"
GREY = 0.0  # of [-1, 1]: where the input row has no photo


class RunLog:
    """The log of a training that stands at `step`; later rows, of a killed sitting, are dropped.

    With `enabled` False (all processes but the main one) nothing is written.
    """

    def __init__(self, folder: Path, step: int, enabled: bool = True) -> None:
        self.enabled = enabled
        if enabled:
            _drop_rows_after(folder / LOG, step)
            self.rows = open(folder / LOG, "a", encoding="utf-8")  # noqa: SIM115 see __exit__
            self.board = TensorBoardTracker(BOARD, folder, purge_step=step + 1)
            self.board.start()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self.rows.close()
            self.board.finish()

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row to the log, and its values to TensorBoard."""
        if self.enabled:
            self.rows.write(json.dumps({"step": step, **values}) + "\n")
            self.rows.flush()
            self.board.log(dict(values), step)

    def pictures(self, step: int, images: Mapping[str, Tensor]) -> None:
        """Add images [3,H,W] in [-1,1] to TensorBoard."""
        if self.enabled:
            pixels = {name: to_uint8(image[None].cpu()) for name, image in images.items()}
            self.board.log_images(pixels, step, dataformats="NHWC")


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
    if not path.exists():
        return
    lines, kept = path.read_text(encoding="utf-8").splitlines(), []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    if len(kept) < len(lines):
        with write_atomic(path) as scratch:
            scratch.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
