"""What the student learns from: the reference's own stacks, sampled once and kept on disk, and
true stacks.

Every sample is a photo (one frame or a whole photo), its position and the stack to be made of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketfocus.data.optics import FRAMES
from pocketfocus.distill.reference.autoencoder import random_crops
from pocketfocus.distill.train.distributed import process_state
from pocketfocus.models.reference import ReferencePipeline, Sampling
from pocketfocus.photos.images import from_uint8, to_uint8
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic
from pocketfocus.run.progress import progress_bar

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """photo [1,3,H,W] and stack [9,3,H,W] in [-1,1], position 0..8, and the seed of the noise that
    the stack came from."""

    photo: Tensor
    position: int
    stack: Tensor
    seed: int = 0


def random_photo_crop(photos: Sequence[Pixels], size: int, generator: torch.Generator) -> Tensor:
    """A random square of a random photo (uint8 [H,W,3]), scaled down to `size`: [1,3,size,size]."""
    photo = photos[int(torch.randint(0, len(photos), (), generator=generator))]
    shortest = min(photo.shape[:2])
    if shortest < size:
        raise UserError(
            f"a training photo is {photo.shape[1]}x{photo.shape[0]} pixels, the crops are {size}: "
            "leave it out or name larger photos"
        )
    side = int(torch.randint(size, min(shortest, 3 * size) + 1, (), generator=generator))
    y, x = (int(torch.randint(0, s - side + 1, (), generator=generator)) for s in photo.shape[:2])
    crop = from_uint8(photo[y : y + side, x : x + side])[None]
    return torch.nn.functional.interpolate(
        crop, (size, size), mode="bicubic", antialias=True, align_corners=False
    ).clamp(-1, 1)


def teacher_targets(
    reference: ReferencePipeline,
    photos: Sequence[Pixels],
    folder: Path,
    count: int,
    minutes: float,
    size: int = 128,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> list[Path]:
    """Sample the reference on photo crops until `count` files exist or `minutes` have passed.

    File i depends on (seed, i) alone, so an interrupted run continues. Positions cycle through all
    nine. Of n processes, number k makes the files k, k + n, … on its own device, one at least.
    Returns the files from the first on, in order, up to one that is missing.
    """
    state, deadline = process_state(), time.monotonic() + 60 * minutes
    parts = (reference.vae, reference.unet, reference.image_encoder)
    for part in parts:
        part.to(state.device)
    tried = False
    with progress_bar() as bar:
        task = bar.add_task("sampling the reference", total=count, visible=state.is_main_process)
        for i in range(state.process_index, count, state.num_processes):
            path = target_path(folder, i)
            if not path.exists():
                if tried and time.monotonic() > deadline:
                    break
                own, position = seed * 1_000_003 + i, i % FRAMES
                photo = random_photo_crop(photos, size, torch.Generator().manual_seed(own))
                stack = reference(photo.to(state.device), position, sampling, own)
                save_target(path, photo, position, stack.cpu(), own)
            tried = True
            bar.update(task, completed=i + 1)
    for part in parts:
        part.cpu()
    state.wait_for_everyone()
    paths = (target_path(folder, i) for i in range(count))
    return list(takewhile(Path.exists, paths))


def target_path(folder: Path, index: int) -> Path:
    """Where target number `index` lies."""
    return folder / f"{index:06d}.safetensors"


def save_target(path: Path, photo: Tensor, position: int, stack: Tensor, seed: int = 0) -> None:
    """Write photo [1,3,H,W], position, stack [9,3,H,W] and seed as safetensors, in 8 bits."""
    tensors = {
        "photo": torch.from_numpy(to_uint8(photo)),
        "stack": torch.from_numpy(to_uint8(stack)),
        "position": torch.tensor(position),
        "seed": torch.tensor(seed),
    }
    with write_atomic(path) as scratch:
        save_file(tensors, scratch)


def load_target(path: Path) -> Sample:
    """Read a file of `save_target`."""
    tensors = load_file(path)
    photo, stack = (from_uint8(tensors[name]) for name in ("photo", "stack"))
    return Sample(photo, int(tensors["position"]), stack, int(tensors["seed"]))


def true_batch(
    stacks: Pixels, batch: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops of true stacks, uint8 [N,9,3,H,W]: photos [B,3,s,s], positions [B], stacks
    [B,9,3,s,s] in [-1,1]."""
    frames = random_crops(stacks, batch, size, generator)
    positions = torch.randint(0, FRAMES, (batch,), generator=generator)
    return frames[torch.arange(batch), positions], positions, frames


def sample_batch(
    samples: Sequence[Sample], batch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random flipped samples, stacked as `true_batch` returns them."""
    chosen = torch.randint(0, len(samples), (batch,), generator=generator).tolist()
    flips = torch.randint(0, 2, (batch,), generator=generator).tolist()
    pick = [samples[i] for i in chosen]
    photos = [s.photo[0].flip(-1) if f else s.photo[0] for s, f in zip(pick, flips, strict=True)]
    stacks = [s.stack.flip(-1) if f else s.stack for s, f in zip(pick, flips, strict=True)]
    positions = torch.tensor([s.position for s in pick])
    return torch.stack(photos), positions, torch.stack(stacks)
