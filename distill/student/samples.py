"""What a student learns from: teacher stacks, which the reference made, and true ones.

Every sample is a photo (one frame or a whole photo), its position and the images to be made of it.
They are drawn in 8 bits, and become numbers where they are learned from.

Legend: B batch, H, W pixels of a photo, s of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.data.optics import NEAREST_DIOPTRES
from pocketfocus.data.stacks import DEPTH_CELL, StackCache
from pocketfocus.photos.images import from_uint8, to_uint8
from pocketfocus.run.constants import FRAMES

HELD_OUT_SHARE = 0.2  # of the stacks choose between the weights before and after
BRIGHTER, TINTED = 0.15, 0.07  # standard deviations of ln of another light, and of its colours


class Batch(NamedTuple):
    """Samples: photos [B,3,s,s], their positions [B], and what is to be made of them, images
    [B,10,3,s,s], the stack and the picture that is sharp everywhere, and nearness [B,1,s/4,s/4],
    dioptres over 20, which is NaN where that picture and it are unknown.

    Photos and images are uint8 as they are drawn, in [-1,1] as they are learned from.
    """

    photos: Tensor
    positions: Tensor
    images: Tensor
    nearness: Tensor

    @property
    def stacks(self) -> Tensor:
        """The frames alone, [B,9,3,s,s]."""
        return self.images[:, :FRAMES]

    @property
    def places(self) -> Tensor:
        """Positions one-hot, [B,9]."""
        return F.one_hot(self.positions, FRAMES).float()

    def floats(self) -> Batch:
        """Turn what was drawn into numbers, where it is."""
        photos, images = (from_uint8(x, planar=True) for x in (self.photos, self.images))
        return Batch(photos, self.positions, images, self.nearness.float())


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
    true_stacks: Sequence[StackCache]  # none where teacher stacks alone are
    held_out: Sequence[Sample]  # teacher stacks, or true ones where there are no others


def split(
    samples: Sequence[Sample], true_stacks: Sequence[StackCache], multiple: int = 1
) -> Material:
    """Hold out some teacher stacks or, without any, some true ones; one alone is both.

    Of true stacks held out, which are called whole, only that many pixels count whose sides are
    multiples of `multiple`.
    """
    if samples or not true_stacks:
        count = max(1, int(HELD_OUT_SHARE * len(samples)))
        return Material(samples[count:] or samples, true_stacks, samples[:count])
    held_out, rest = [], []
    for stacks in true_stacks:
        count = min(FRAMES, max(1, int(HELD_OUT_SHARE * len(stacks))))
        height, width = (side // multiple * multiple for side in stacks.images.shape[-2:])
        frames = [stack.frames[..., :height, :width] for stack in stacks[:count]]
        held_out += [Sample(stack[n][None], n, stack, n) for n, stack in enumerate(frames)]
        rest.append(stacks.part(slice(count, None)) if len(stacks) > 1 else stacks)
    return Material([], rest, held_out)


def true_batch(
    caches: Sequence[StackCache], batch: int, size: int, generator: torch.Generator
) -> Batch:
    """Draw random crops of true stacks, mirrored or not, half of them in another light; they begin
    at whole cells of the map of dioptres."""
    return joined([_crop(caches, size, generator) for _ in range(batch)])


def _crop(caches: Sequence[StackCache], size: int, generator: torch.Generator) -> Batch:
    def drawn(limit: int) -> int:
        return int(torch.randint(0, limit, (), generator=generator))

    index, number = drawn(sum(map(len, caches))), 0
    while index >= len(caches[number]):
        index, number = index - len(caches[number]), number + 1
    stacks, cell = caches[number], DEPTH_CELL
    y, x = (drawn((side - size) // cell + 1) for side in stacks.images.shape[-2:])
    position, mirrored, plain = drawn(FRAMES), drawn(2), drawn(2)
    pixels = stacks.images[index, ..., cell * y : cell * y + size, cell * x : cell * x + size]
    cells = size // cell
    nearness = stacks.dioptres[index, None, y : y + cells, x : x + cells] / NEAREST_DIOPTRES
    images, nearer = torch.from_numpy(np.array(pixels)), torch.from_numpy(np.array(nearness))
    if mirrored:
        images, nearer = images.flip(-1), nearer.flip(-1)
    light = torch.randn(4, generator=generator)
    if not plain:
        images = lit(images, (BRIGHTER * light[0] + TINTED * light[1:]).exp())
    return Batch(images[position][None], torch.tensor([position]), images[None], nearer[None])


def lit(images: Tensor, gains: Tensor) -> Tensor:
    """Images uint8 [...,3,s,s] in a light that multiplies colours by gains [3]."""
    table = (torch.arange(256) * gains[:, None]).round().clamp(max=255).byte()
    colours = [table[n][images[..., n, :, :].int()] for n in range(len(gains))]
    return torch.stack(colours, dim=-3)


def sample_batch(samples: Sequence[Sample], batch: int, generator: torch.Generator) -> Batch:
    """Draw random samples, mirrored or not."""
    chosen = torch.randint(0, len(samples), (batch,), generator=generator).tolist()
    flips = torch.randint(0, 2, (batch,), generator=generator).tolist()
    found = []
    for sample, flip in zip((samples[i] for i in chosen), flips, strict=True):
        images = F.pad(sample.stack, (0, 0, 0, 0, 0, 0, 0, 1), value=-1.0)
        pair = [torch.from_numpy(to_uint8(x, planar=True)) for x in (sample.photo, images)]
        photo, images = (x.flip(-1) if flip else x for x in pair)
        cells = (side // DEPTH_CELL for side in photo.shape[-2:])
        unknown = torch.full((1, 1, *cells), torch.nan, dtype=torch.float16)
        found.append(Batch(photo, torch.tensor([sample.position]), images[None], unknown))
    return joined(found)


def joined(batches: Sequence[Batch]) -> Batch:
    """Samples one after the other."""
    return Batch(*map(torch.cat, zip(*batches, strict=True)))
