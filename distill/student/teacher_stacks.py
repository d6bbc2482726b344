"""Teacher stacks: what the reference makes of photos, sampled once and kept on disk."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import overload

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketfocus.data.sizing import LARGEST, limited, limited_size
from pocketfocus.distill.student.samples import Sample
from pocketfocus.distill.train.crops import Pixels
from pocketfocus.distill.train.distributed import process_state
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.sampling import Sampling
from pocketfocus.photos.images import from_uint8, load_photo, stored_size, to_uint8
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic
from pocketfocus.run.progress import console, progress_bar

KEPT_BYTES = 1 << 29
LONGEST_CROPS = 5  # crops that a photo's longer side has room for: 640 pixels of 128

Pool = Sequence[Pixels]  # of photos, uint8 [H,W,3]


@dataclass(frozen=True)
class TeacherStacks:
    """Which stacks the reference is to make.

    Stack i depends on (seed, i) alone, so that an interrupted sampling goes on.
    """

    folder: Path
    count: int  # at most
    minutes: float  # to stop after; every process makes one at least
    size: int = 128  # of the photos, pixels
    seed: int = 0
    sampling: Sampling | None = None  # None for the reference's own way

    def path(self, index: int) -> Path:
        """Say where stack number `index` lies."""
        return self.folder / f"{index:06d}.safetensors"

    def sample(self, reference: ReferencePipeline, photos: Pool, index: int) -> Sample:
        """Make stack number `index` of a crop of the photos; positions cycle through all nine."""
        seed, position = self.seed * 1_000_003 + index, index % FRAMES
        photo = random_photo_crop(photos, self.size, torch.Generator().manual_seed(seed))
        made = reference(photo.to(process_state().device), position, self.sampling, seed)
        return Sample(photo, position, made.cpu(), seed)


def sample_teacher_stacks(
    reference: ReferencePipeline, photos: Pool, wanted: TeacherStacks
) -> list[Path]:
    """Sample the reference on crops of photos, uint8 [H,W,3], those stacks that are not there yet.

    Of n processes, number k makes the files k, k + n, … on its own device. Returns the files from
    the first on, in order, up to one that is missing.
    """
    state, deadline = process_state(), time.monotonic() + 60 * wanted.minutes
    parts = (reference.vae, reference.unet, reference.image_encoder)
    for part in parts:
        part.to(state.device)
    tried = False
    with progress_bar() as bar:
        description, visible = "sampling the reference", state.is_main_process
        task = bar.add_task(description, total=wanted.count, visible=visible)
        for index in range(state.process_index, wanted.count, state.num_processes):
            if not wanted.path(index).exists():
                if tried and time.monotonic() > deadline:
                    break
                save_sample(wanted.path(index), wanted.sample(reference, photos, index))
            tried = True
            bar.update(task, completed=index + 1)
    for part in parts:
        part.cpu()
    state.wait_for_everyone()
    return list(takewhile(Path.exists, map(wanted.path, range(wanted.count))))


def random_photo_crop(photos: Pool, size: int, generator: torch.Generator) -> Tensor:
    """Cut a random square out of a random photo (uint8 [H,W,3]), scaled down: [1,3,size,size]."""
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


class Photos(Sequence[Pixels]):
    """The photos of files, uint8 [H,W,3], decoded as they are asked for: as many as fit into
    `KEPT_BYTES` stay decoded, the last ones. Larger ones are scaled down so that a random crop of
    `crop` pixels shows a part of the scene and not a scrap of a phone's own pixels."""

    def __init__(self, files: Sequence[Path], crop: int) -> None:
        self.files = files
        limits = (max(LARGEST, LONGEST_CROPS * crop), crop)
        largest = max(math.prod(limited_size(stored_size(path), *limits)) for path in files)
        kept = lru_cache(max(1, KEPT_BYTES // (3 * largest)))
        self._load = kept(
            lambda path: np.asarray(limited(load_photo(path, (limits[0], limits[0])), *limits))
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pixels:  # type: ignore[override]
        return self._load(self.files[index])


def load_photos(photos: Sequence[Path], crop: int) -> Photos:
    """Open photos; those smaller than a crop are left out, saying so."""
    large = [path for path in photos if min(stored_size(path)) >= crop]
    if not large:
        raise UserError(f"no photo is at least {crop} pixels on both sides: name larger ones")
    if len(large) < len(photos) and process_state().is_main_process:
        console.print(f"{len(photos) - len(large)} photos are smaller than {crop} pixels: left out")
    return Photos(large, crop)


def save_sample(path: Path, sample: Sample) -> None:
    """Write a sample as safetensors, in 8 bits."""
    tensors = {
        "photo": torch.from_numpy(to_uint8(sample.photo)),
        "stack": torch.from_numpy(to_uint8(sample.stack)),
        "position": torch.tensor(sample.position),
        "seed": torch.tensor(sample.seed),
    }
    with write_atomic(path) as scratch:
        save_file(tensors, scratch)


def load_sample(path: Path) -> Sample:
    """Read a file of `save_sample`."""
    tensors = load_file(path)
    photo, stack = (from_uint8(tensors[name]) for name in ("photo", "stack"))
    return Sample(photo, int(tensors["position"]), stack, int(tensors["seed"]))


class SampleFiles(Sequence[Sample]):
    """Samples in files of `save_sample`, read as they are asked for: as numbers, ten thousand of
    them would fill 18 GB of memory in every process."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleFiles: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleFiles:
        """Return one sample, or fewer files for a slice."""
        found = self.files[index]
        return load_sample(found) if isinstance(found, Path) else SampleFiles(found)
