from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.data.photo_scenes import (
    PhotoScenes,
    is_held_out,
    kind_of,
    layers_of,
    lit,
    photographed,
    placed,
)
from pocketfocus.run.constants import FRAMES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos with depth, one of them held out."""
    found = tmp_path_factory.mktemp("rgbd")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :128]
    for name in ("bsds-1", next(f"bsds-{n}" for n in range(2, 99) if is_held_out(f"bsds-{n}"))):
        photo = rng.integers(0, 255, (96, 128, 3), np.uint8)
        depth = np.where((rows > 40) & (columns > 60), 120, 2000).astype(np.uint16)
        Image.fromarray(photo).save(found / f"{name}.jpg")
        Image.fromarray(depth).save(found / f"{name}.depth.png")
    return found


def test_a_seed_is_one_scene(folder: Path) -> None:
    scenes = PhotoScenes(folder, 48, 64)
    scene, again, other = scenes.render(3), scenes.render(3), scenes.render(4)
    assert scene.images.shape == (FRAMES + 1, 3, 48, 64)
    assert scene.dioptres.shape == (12, 16)
    assert (scene.images == again.images).all()
    assert (scene.images != other.images).any()


def test_held_out_photos_are_never_trained_on(folder: Path) -> None:
    trained, held = (PhotoScenes(folder, 48, 64, validation=v) for v in (False, True))
    names = [{p.stem for pairs in s.pairs.values() for p, _ in pairs} for s in (trained, held)]
    assert names[0] and names[1] and not names[0] & names[1]
    assert (trained.render(0).images != held.render(0).images).any()


def test_pairs_of_one_scene_are_on_one_side() -> None:
    assert is_held_out("lfsd-dff-7") == is_held_out("cave-dff-7")
    assert kind_of("nyuv2-3") == "nyuv2"
    assert kind_of("middlebury-art") == ""


def test_each_plane_is_sharpest_where_the_lens_focuses() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (64, 64, 3), np.uint8)
    dioptres = np.full((64, 64), 2.5, np.float32)  # position 7
    dioptres[:, 32:] = 17.5  # position 1
    images = photographed(layers_of(lit(photo, np.random.default_rng(2)), dioptres), rng) / 255
    far, near = (images[:, :, 8:-8, s].var((1, 2, 3)) for s in (slice(4, 20), slice(44, 60)))
    assert far[:FRAMES].argmax() == 7
    assert near[:FRAMES].argmax() == 1
    assert min(far[FRAMES] / far.max(), near[FRAMES] / near.max()) > 0.95  # sharp everywhere


def test_dioptres_are_those_of_a_phone() -> None:
    nearness = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    found = [placed(nearness, np.random.default_rng(seed)) for seed in range(200)]
    assert all(d.min() >= 0 and d.max() <= 20 and (np.diff(d.ravel()) >= 0).all() for d in found)
    flat = [d for d in found if np.ptp(d) < 2]
    assert 5 < len(flat) < 50
    assert max(d.max() for d in found) > 18


def test_a_folder_that_shrank_is_taken_at_larger_scales(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "shrunk.txt").write_text("0.75\n", encoding="utf-8")
    assert PhotoScenes(folder, 48, 64).shrunk == 1
    assert PhotoScenes(tmp_path, 48, 64).shrunk == 0.75
