"""Whether a made focal stack is sharp where the true one is: the focus accuracy of its patches.

Legend: T frames, h, w patches down and across.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.photos.focusmap import sharpness

PATCH = 16  # pixels a side
NOISE = 1e-3  # of `sharpness`, about that of a standard deviation of one grey level in 255
CONTRAST = 2.0  # times the least sharp frame: less, and a patch has no focus to be found


class FocusAccuracy(NamedTuple):
    """How a made stack does at the patches that have a focus in the truth.

    Attributes:
        share: of them, those whose sharpest frame is the true one.
        error: by how many positions the sharpest frame is off, on average.
    """

    share: float
    error: float


def patches(stack: Tensor) -> Tensor:
    """Return how sharp each patch of a stack [T,3,H,W] in [-1, 1] is: [T,h,w]."""
    return F.avg_pool2d(sharpness(stack)[:, None], PATCH)[:, 0]


def focus_accuracy(made: Tensor, true: Tensor, positions: Sequence[float]) -> FocusAccuracy | None:
    """Compare where a stack [T,3,H,W] in [-1, 1] of these positions [T] is sharpest with the
    `patches` of the true one; None where none of these has a focus."""
    has_focus = (true.amax(0) > NOISE) & (true.amax(0) >= CONTRAST * true.amin(0))
    if not bool(has_focus.any()):
        return None
    at = torch.tensor(positions, dtype=torch.float32, device=true.device)
    off = (at[patches(made).argmax(0)] - at[true.argmax(0)]).abs()[has_focus]
    return FocusAccuracy(float((off == 0).float().mean()), float(off.mean()))
