from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfocus.data.scene_pool import PoolOptions, ScenePool
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError


def pairs(folder: Path, depth: int) -> Path:
    rng = np.random.default_rng(0)
    for name, (height, width) in {"a": (96, 64), "b": (64, 96)}.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(
            folder / f"{name}.jpg"
        )
        metres = np.full((height, width), depth, np.uint16)
        metres[: height // 2] *= 4
        Image.fromarray(metres).save(folder / f"{name}.depth.png")
    return folder


def test_batches_are_crops_of_rendered_scenes(tmp_path: Path) -> None:
    options = PoolOptions(pairs(tmp_path, 300), workers=1, scenes=6, short=48, long=64)
    with ScenePool(options) as pool:
        while len(pool) < 3:
            pool.take(wait=True)
        generator = torch.Generator().manual_seed(0)
        batch = pool.batch(5, 32, generator)
    assert batch.photos.shape == (5, 3, 32, 32)
    assert batch.images.shape == (5, FRAMES + 1, 3, 32, 32)
    assert batch.nearness.shape == (5, 1, 8, 8)
    assert -1 <= batch.images.min() < batch.images.max() <= 1
    for photo, position, images in zip(batch.photos, batch.positions, batch.images, strict=True):
        assert torch.equal(photo, images[position])
    # near places are below, in the picture as in the map: nothing is turned or shifted
    assert (batch.nearness[..., 1:, :] - batch.nearness[..., :-1, :]).min() >= -1e-3


def test_rendering_stops_when_the_pool_is_full(tmp_path: Path) -> None:
    options = PoolOptions(pairs(tmp_path, 300), workers=1, scenes=4, short=48, long=64)
    with ScenePool(options) as pool:
        while pool.rendered < 4:
            pool.take(wait=True)
        assert pool.rendered == 4


def test_what_cannot_be_rendered_ends_in_one_line(tmp_path: Path) -> None:
    folder = pairs(tmp_path, 300)
    for name in ("a", "b"):
        (folder / f"{name}.jpg").write_bytes(b"no picture")
    options = PoolOptions(folder, workers=1, scenes=4, short=48, long=64)
    with ScenePool(options) as pool, pytest.raises(UserError, match="cannot be rendered"):
        pool.take(wait=True)
