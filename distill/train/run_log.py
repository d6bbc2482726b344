"""What a training leaves to look at: train.jsonl, and TensorBoard's scalars and pictures beside it.

A resumed training continues both without a row or a point twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pocketfocus.photos.images import to_uint8
from pocketfocus.run.files import write_atomic

LOG, BOARD = "train.jsonl", "tensorboard"
GREY = 0.0  # of [-1, 1]: where the input row has no photo


class Journal:
    """The log of a training that stands at `step`; later rows, of a killed sitting, are dropped.

    With `enabled` False (all processes but the main one) nothing is written.
    """

    def __init__(self, folder: Path, step: int, board: bool = True, enabled: bool = True) -> None:
        self.log = self.board = None
        if not enabled:
            return
        _drop_rows_after(folder / LOG, step)
        self.log = open(folder / LOG, "a", encoding="utf-8")  # noqa: SIM115 closed by __exit__
        if board:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder / BOARD, purge_step=step + 1)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.log is not None:
            self.log.close()
        if self.board is not None:
            self.board.close()

    def row(self, values: Mapping[str, Any]) -> None:
        """Append one row with "step" to the log, and its other numbers to TensorBoard."""
        if self.log is None:
            return
        self.log.write(json.dumps(values) + "\n")
        self.log.flush()
        if self.board is not None:
            for name in values.keys() - {"step"}:
                self.board.add_scalar(name, values[name], values["step"])

    def pictures(self, step: int, images: Mapping[str, Tensor]) -> None:
        """Add images [3,H,W] in [-1,1] to TensorBoard."""
        if self.board is None:
            return
        for name, image in images.items():
            self.board.add_image(name, to_uint8(image, planar=True), step)
        self.board.flush()


def stack_picture(truth: Tensor, estimate: Tensor, position: int | None = None) -> Tensor:
    """Stacks [T,3,H,W] as rows of an image: the input at its position, truth, estimate.

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
