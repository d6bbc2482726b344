"""One-step regression with zero noise, in pixels through the decoder that ships.

E2E-FT (arXiv 2409.11355) for the task loss at a fixed timestep; DOVE (arXiv 2505.16239) for the
difference of adjacent frames; Any-to-Bokeh (arXiv 2505.21593) for the gradient term.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.optics import FRAMES
from pocketfocus.student import RefocusStudent

EDGE_WEIGHT = 0.5
ADJACENT_WEIGHT = 0.5


def regression_losses(
    student: RefocusStudent, photos: Tensor, positions: Tensor, stacks: Tensor, pool: int = 1
) -> dict[str, Tensor]:
    """Pixel, edge and adjacent-frame terms.

    photos [B,3,H,W], positions [B], stacks [B,9,3,H,W]; all in [-1,1]. With `pool` both sides are
    first averaged over squares of that many pixels, so that finer detail is not compared.
    """
    one_hot = F.one_hot(positions, FRAMES).float()
    made = student(photos, one_hot)
    made, stacks = (pooled(stack, pool) for stack in (made.float().reshape(stacks.shape), stacks))
    squared = F.mse_loss(made, stacks)
    pixel = F.l1_loss(made, stacks)
    edge = sum(F.l1_loss(made.diff(dim=d), stacks.diff(dim=d)) for d in (-1, -2))
    adjacent = F.l1_loss(made.diff(dim=1), stacks.diff(dim=1))
    loss = pixel + 2 * squared + EDGE_WEIGHT * edge + ADJACENT_WEIGHT * adjacent
    return {"loss": loss, "l1": pixel, "psnr_db": 10 * torch.log10(4 / squared.detach())}


def pooled(stacks: Tensor, pool: int) -> Tensor:
    """Average over `pool` x `pool` pixels: [...,H,W] -> [...,H/pool,W/pool]."""
    smaller = F.avg_pool2d(stacks.flatten(0, -4), pool)
    return smaller.reshape(*stacks.shape[:-2], *smaller.shape[-2:])
