"""One-step regression with zero noise, in pixels through what ships.

E2E-FT (arXiv 2409.11355) for the task loss at a fixed timestep; DOVE (arXiv 2505.16239) for the
difference of adjacent frames; Any-to-Bokeh (arXiv 2505.21593) for the gradient term.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.optics import FRAMES
from pocketfocus.student import RefocusStudent

FLOOR = 4e-4  # squared error in [-1,1], 40 dB: better frames need not get better still
EDGE_WEIGHT = ADJACENT_WEIGHT = 0.1


def regression_losses(
    student: RefocusStudent, photos: Tensor, positions: Tensor, stacks: Tensor, pool: int = 1
) -> dict[str, Tensor]:
    """Pixel, edge and adjacent-frame terms, each the log of a frame's squared error.

    photos [B,3,H,W], positions [B], stacks [B,9,3,H,W]; all in [-1,1]. With `pool` both sides are
    first averaged over squares of that many pixels, so that finer detail is not compared. The
    frame at the photo's own position is the photo already, and does not count.
    """
    one_hot = F.one_hot(positions, FRAMES).float()
    made = student(photos, one_hot).float().reshape(stacks.shape)
    copies = photos[:, None].expand_as(stacks)
    made, stacks, copies = (pooled(stack, pool) for stack in (made, stacks, copies))
    others, squared = 1 - one_hot, _squared(made - stacks)
    error = made - stacks
    edge = sum(_log(_squared(error.diff(dim=d)), others) for d in (-1, -2))
    adjacent = _log(_squared(error.diff(dim=1)), torch.ones_like(others[:, 1:]))
    pixel = _log(squared, others)
    loss = pixel + EDGE_WEIGHT * edge + ADJACENT_WEIGHT * adjacent
    decibels = 10 / math.log(10)
    gain = decibels * (_log(_squared(copies - stacks), others) - pixel)
    mean = (squared * others).sum() / others.sum()
    return {"loss": loss, "gain_db": gain.detach(), "psnr_db": 10 * torch.log10(4 / mean.detach())}


def _squared(error: Tensor) -> Tensor:
    """[B,T,3,H,W] -> [B,T]."""
    return error.square().mean((-1, -2, -3))


def _log(squared: Tensor, counted: Tensor) -> Tensor:
    """Mean of log(1 + squared / FLOOR) over the frames that count."""
    return ((squared / FLOOR).log1p() * counted).sum() / counted.sum()


def pooled(stacks: Tensor, pool: int) -> Tensor:
    """Average over `pool` x `pool` pixels: [...,H,W] -> [...,H/pool,W/pool]."""
    smaller = F.avg_pool2d(stacks.flatten(0, -4), pool)
    return smaller.reshape(*stacks.shape[:-2], *smaller.shape[-2:])
