"""Crops of focal stacks: what sizes a training takes, and until when.

Legend: N stacks, B batch, H, W pixels of a stack, s of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketfocus.photos.images import from_uint8
from pocketfocus.run.errors import UserError

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Crops:
    """`batch` samples of `size` pixels a process, until this share of the budget is spent."""

    until: float
    batch: int
    size: int

    def resized(self, size: int) -> Crops:
        """Crops of another size to the end, no more of them and no more pixels a step."""
        batch = self.batch * self.size**2 // size**2
        return Crops(1.0, max(1, min(self.batch, batch)), size)


def current(crops: Sequence[Crops], progress: float) -> Crops:
    """Return the crops to take when this share of the budget is spent."""
    return next((part for part in crops if progress < part.until), crops[-1])


def check_size(sides: tuple[int, ...], crops: Sequence[Crops]) -> None:
    """Raise UserError unless stacks whose shape ends in height and width hold every crop."""
    largest, (height, width) = max(part.size for part in crops), sides[-2:]
    if min(height, width) < largest:
        raise UserError(
            f"stacks are {width}x{height} pixels, crops need {largest}: use larger stacks, with "
            f"--size {largest} or more"
        )


def random_crops(stacks: Pixels, batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw flipped crops [B,9,3,s,s] in [-1,1] of random stacks, uint8 [N,9,3,H,W]."""
    height, width = stacks.shape[-2:]
    crops = []
    for _ in range(batch):
        n, y, x, flip = (
            int(torch.randint(0, limit, (), generator=generator))
            for limit in (len(stacks), height - size + 1, width - size + 1, 2)
        )
        crop = torch.from_numpy(np.array(stacks[n, :, :, y : y + size, x : x + size]))
        crops.append(crop.flip(-1) if flip else crop)
    return from_uint8(torch.stack(crops), planar=True)


def middle(stack: Pixels, size: int) -> Tensor:
    """Cut the middle [9,3,s,s] in [-1,1] out of a stack, uint8 [9,3,H,W]."""
    y, x = ((side - size) // 2 for side in stack.shape[-2:])
    window = np.array(stack[..., y : y + size, x : x + size])
    return from_uint8(window, planar=True)
