"""Scenes rendered by processes beside a training, kept where it computes, and crops of them.

Processes render into slots of one memory-mapped file and say which are ready; the pool copies them
to its device, the oldest making room, and draws batches there without touching the host.

Legend: B batch, I = 10 images, S crop size.
"""

from __future__ import annotations

import queue
import tempfile
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketfocus.data.photo_scenes import DEPTH_CELL, PhotoScenes
from pocketfocus.run.constants import FRAMES, IMAGES
from pocketfocus.run.errors import UserError

SLOTS_PER_WORKER = 3
PATIENCE_S = 300.0  # for the first scene: workers import and read


class Batch(NamedTuple):
    """Crops, on the pool's device.

    photos [B,3,S,S] and images [B,I,3,S,S] in [-1,1]; positions [B] of the photos; nearness
    [B,1,S/4,S/4], dioptres over 20.
    """

    photos: Tensor
    positions: Tensor
    images: Tensor
    nearness: Tensor


@dataclass(frozen=True)
class PoolOptions:
    """What a pool holds and who renders for it.

    Attributes:
        folder: of photos with depth.
        workers: processes that render.
        scenes: how many are kept.
        endless: whether rendering goes on once that many are there, replacing the oldest.
        short, long: sides of a scene, pixels.
        device: of the pool; a CUDA device renders too.
        seed: of the first scene.
    """

    folder: Path
    workers: int = 1
    scenes: int = 3000
    endless: bool = False
    short: int = 160
    long: int = 240
    device: str = "cpu"
    seed: int = 0


class ScenePool:
    """Use it as a context: the processes end with it."""

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.rendered = 0
        area = options.short * options.long
        half = options.scenes // 2 + 1
        self._images = {
            tall: torch.empty(
                half, IMAGES, 3, *self._size(tall), dtype=torch.uint8, device=options.device
            )
            for tall in (True, False)
        }
        cells = area // DEPTH_CELL**2
        self._nearness = {
            tall: torch.empty(
                half, *(s // DEPTH_CELL for s in self._size(tall)), device=options.device
            )
            for tall in (True, False)
        }
        self._counts = {True: 0, False: 0}
        self._slots = SLOTS_PER_WORKER * options.workers
        self._bytes, self._cells = IMAGES * 3 * area, cells

    def _size(self, tall: bool) -> tuple[int, int]:
        short, long = self.options.short, self.options.long
        return (long, short) if tall else (short, long)

    def __enter__(self) -> ScenePool:
        context = get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="pocketfocus-scenes-")
        self._path = Path(self._folder.name) / "slots"
        self._file = open_slots(self._path, self._slots, self._bytes + 2 * self._cells, "w+")
        self._free: Any = context.Queue()
        self._ready: Any = context.Queue()
        for slot in range(self._slots):
            self._free.put(slot)
        self._processes = [
            context.Process(
                target=serve,
                args=(self.options, number, self._path, self._free, self._ready),
                daemon=True,
            )
            for number in range(self.options.workers)
        ]
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        self._folder.cleanup()

    def __len__(self) -> int:
        return sum(min(n, len(self._images[tall])) for tall, n in self._counts.items())

    def take(self, wait: bool = False) -> int:
        """Copy what is ready into the pool; how many scenes that were. With `wait`, one at least.

        UserError when a process ended, with its reason, or gave nothing for minutes.
        """
        count = 0
        while True:
            try:
                slot, tall, error = self._ready.get(
                    timeout=PATIENCE_S if wait and not count else 0.001
                )
            except queue.Empty:
                if wait and not count:
                    raise UserError(
                        "no scene was rendered for minutes: is the machine busy?"
                    ) from None
                return count
            if error:
                raise UserError(f"scenes cannot be rendered: {error}")
            self._put(slot, tall)
            count += 1
            if self.options.endless or self.rendered + self._slots <= self.options.scenes:
                self._free.put(slot)

    def _put(self, slot: int, tall: bool) -> None:
        ring, at = self._images[tall], self._counts[tall] % len(self._images[tall])
        row = self._file[slot]
        ring[at] = torch.from_numpy(row[: self._bytes].copy()).reshape(ring.shape[1:])
        cells = row[self._bytes :].copy().view(np.float16).astype(np.float32)
        self._nearness[tall][at] = (
            torch.from_numpy(cells).reshape(self._nearness[tall].shape[1:]) / 20
        )
        self._counts[tall] += 1
        self.rendered += 1

    def batch(self, size: int, crop: int, generator: torch.Generator) -> Batch:
        """Random crops of random scenes, half of them mirrored and half in another light."""
        device = self.options.device
        counts = [min(self._counts[tall], len(self._images[tall])) for tall in (True, False)]
        tall = bool(torch.rand((), generator=generator) * sum(counts) < counts[0])
        images, nearness = self._images[tall], self._nearness[tall]
        count = min(self._counts[tall], len(images))

        def drawn(high: int) -> Tensor:
            return torch.randint(0, high, (size,), generator=generator).to(device)

        cells = crop // DEPTH_CELL
        scene, positions = drawn(count), drawn(FRAMES)
        top = drawn((images.shape[-2] - crop) // DEPTH_CELL + 1)
        left = drawn((images.shape[-1] - crop) // DEPTH_CELL + 1)
        mirrored = torch.rand(size, generator=generator).to(device) < 0.5

        def window(tensor: Tensor, side: int, scale: int) -> Tensor:
            steps = torch.arange(side, device=device)
            rows = (top * scale)[:, None] + steps
            columns = torch.where(mirrored[:, None], steps.flip(0), steps) + (left * scale)[:, None]
            return tensor[scene[:, None, None], ..., rows[:, :, None], columns[:, None, :]]

        # [B,S,S,I,3] as indexing gives it -> [B,I,3,S,S]
        pixels = window(images, crop, DEPTH_CELL).permute(0, 3, 4, 1, 2).float() / 255
        light = torch.randn(size, 4, generator=generator).to(device)
        gain = (0.15 * light[:, :1] + 0.07 * light[:, 1:]).exp()
        plain = torch.rand(size, generator=generator).to(device) < 0.5
        gain = torch.where(plain[:, None], torch.ones_like(gain), gain)[:, None, :, None, None]
        stack = (pixels * gain).clamp(max=1) * 2 - 1
        photos = stack[torch.arange(size, device=device), positions]
        return Batch(photos, positions, stack, window(nearness, cells, 1)[:, None])


def open_slots(path: Path, slots: int, size: int, mode: Any) -> NDArray[np.uint8]:
    """The file of slots, memory-mapped: [slots, size] uint8."""
    return np.memmap(path, np.uint8, mode, shape=(slots, size))


def serve(options: PoolOptions, number: int, path: Path, free: Any, ready: Any) -> None:
    """A process: render into free slots until it is ended."""
    torch.set_num_threads(1)
    cells = options.short * options.long // DEPTH_CELL**2
    size = IMAGES * 3 * options.short * options.long
    try:
        scenes = PhotoScenes(options.folder, options.short, options.long, device=options.device)
        slots = open_slots(path, SLOTS_PER_WORKER * options.workers, size + 2 * cells, "r+")
        seed = options.seed + number
        while True:
            slot = free.get()
            scene = scenes.render(seed)
            seed += options.workers
            slots[slot, :size] = scene.images.reshape(-1)
            slots[slot, size:] = scene.dioptres.reshape(-1).view(np.uint8)
            ready.put((slot, scene.images.shape[-2] == options.long, ""))
    except KeyboardInterrupt:
        return
    except Exception as error:
        ready.put((0, True, f"{type(error).__name__}: {error}"))
