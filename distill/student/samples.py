"""What a student learns from: teacher stacks, which the reference made, and true ones.

Every sample is a photo (one frame or a whole photo), its position and the stack to be made of it.

Legend: N stacks, B batch, H, W pixels of a photo, s of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pocketfocus.distill.train.crops import Pixels, random_crops
from pocketfocus.photos.images import from_uint8
from pocketfocus.run.constants import FRAMES

HELD_OUT_SHARE = 0.2  # of the stacks choose between the weights before and after

Batch = tuple[Tensor, Tensor, Tensor]  # photos [B,3,s,s], positions [B], stacks [B,9,3,s,s]


@dataclass(frozen=True)
class Sample:
    """A photo and the stack to be made of it."""

    photo: Tensor  # [1,3,H,W] in [-1,1]
    position: int  # 0..8, of the photo
    stack: Tensor  # [9,3,H,W] in [-1,1]
    seed: int = 0  # of the noise that the stack came from


@dataclass(frozen=True)
class Material:
    """What a student learns from, and what it is scored on."""

    teacher_stacks: Sequence[Sample]  # none where true stacks alone are learned from
    true_stacks: Pixels | None  # uint8 [N,9,3,H,W]; None where teacher stacks alone are
    held_out: Sequence[Sample]  # teacher stacks, or true ones where there are no others


def split(samples: Sequence[Sample], true_stacks: Pixels | None) -> Material:
    """Hold out some teacher stacks or, without any, some true ones; one alone is both."""
    if samples or true_stacks is None:
        count = max(1, int(HELD_OUT_SHARE * len(samples)))
        return Material(samples[count:] or samples, true_stacks, samples[:count])
    count = min(FRAMES, max(1, int(HELD_OUT_SHARE * len(true_stacks))))
    frames = from_uint8(np.array(true_stacks[:count]), planar=True)
    held_out = [Sample(stack[n][None], n, stack, n) for n, stack in enumerate(frames)]
    return Material([], true_stacks[count:] if len(true_stacks) > 1 else true_stacks, held_out)


def true_batch(stacks: Pixels, batch: int, size: int, generator: torch.Generator) -> Batch:
    """Draw random crops of true stacks, uint8 [N,9,3,H,W]."""
    frames = random_crops(stacks, batch, size, generator)
    positions = torch.randint(0, FRAMES, (batch,), generator=generator)
    return frames[torch.arange(batch), positions], positions, frames


def sample_batch(samples: Sequence[Sample], batch: int, generator: torch.Generator) -> Batch:
    """Draw random samples, flipped at random."""
    chosen = torch.randint(0, len(samples), (batch,), generator=generator).tolist()
    flips = torch.randint(0, 2, (batch,), generator=generator).tolist()
    pick = [samples[i] for i in chosen]
    photos = [s.photo[0].flip(-1) if f else s.photo[0] for s, f in zip(pick, flips, strict=True)]
    stacks = [s.stack.flip(-1) if f else s.stack for s, f in zip(pick, flips, strict=True)]
    positions = torch.tensor([s.position for s in pick])
    return torch.stack(photos), positions, torch.stack(stacks)
