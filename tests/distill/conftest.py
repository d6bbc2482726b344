"""Focal stacks for tests of training: in memory, and as folders of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.data.stacks import DEPTH_CELL, StackCache

WriteStacks = Callable[[Path, np.ndarray], Path]


@pytest.fixture(scope="session")
def noise() -> np.ndarray:
    """Two stacks in which nothing is alike: uint8 [2, 9, 3, 64, 64]."""
    return np.random.default_rng(0).integers(0, 255, (2, 9, 3, 64, 64), np.uint8)


def cached(frames: np.ndarray, dioptres: float = np.nan) -> StackCache:
    """Stacks uint8 [N, 9, 3, H, W] as a cache has them, their mean in the place of what is sharp
    everywhere; all at one distance, if it is known."""
    sharp = frames.mean(1, keepdims=True).astype(np.uint8)
    cells = [side // DEPTH_CELL for side in frames.shape[-2:]]
    everywhere = np.full((len(frames), *cells), dioptres, np.float16)
    return StackCache(
        np.concatenate([frames, sharp], 1), everywhere, [str(n) for n in range(len(frames))]
    )


@pytest.fixture(scope="session")
def ramps() -> np.ndarray:
    """Smooth colour ramps that differ by stack and frame: uint8 [3, 9, 3, 64, 64]."""
    y, x = np.mgrid[0:64, 0:64] / 64
    phase = np.arange(81).reshape(3, 9, 3, 1, 1) / 20
    return ((np.sin(3 * (x + y) + phase) + 1) * 127).astype(np.uint8)


@pytest.fixture(scope="session")
def write_stacks() -> WriteStacks:
    """write_stacks(folder, stacks): a folder of nine images for each stack."""

    def write(folder: Path, stacks: np.ndarray) -> Path:
        for number, stack in enumerate(stacks):
            (folder / str(number)).mkdir(parents=True)
            for position, frame in enumerate(stack):
                path = folder / str(number) / f"{position}.png"
                Image.fromarray(frame.transpose(1, 2, 0)).save(path)
        return folder

    return write
