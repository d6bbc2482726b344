import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfocus.data.optics import Shoulder
from pocketfocus.data.photo_scenes import (
    PhotoScenes,
    is_held_out,
    kind_of,
    layers_of,
    lit,
    photographed,
    placed,
    scene_of,
)
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError


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
    scenes = PhotoScenes(folder, (48, 64), (3, 3, 4))
    scene, again, other = scenes
    assert scene.frames.shape == (FRAMES, 3, 48, 64)
    assert scene.sharp is not None and scene.sharp.shape == (3, 48, 64)
    assert scene.dioptres is not None and scene.dioptres.shape == (12, 16)
    assert torch.equal(scene.frames, again.frames)
    assert not torch.equal(scene.frames, other.frames)


def test_a_key_is_of_what_files_hold_and_not_of_their_sizes_or_times(
    folder: Path, tmp_path: Path
) -> None:
    """Depth that was rewritten keeps its size; a copy on another machine has other times."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    np.save(tmp_path / "mine.depth.npy", np.full((96, 128), 2.0))
    (tmp_path / "mine.jpg").write_bytes((folder / "bsds-1.jpg").read_bytes())
    before = PhotoScenes(tmp_path, (48, 64), (3,)).key
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    assert PhotoScenes(tmp_path, (48, 64), (3,)).key == before
    np.save(tmp_path / "mine.depth.npy", np.full((96, 128), 3.0))
    assert PhotoScenes(tmp_path, (48, 64), (3,)).key != before


def test_held_out_photos_are_never_trained_on(folder: Path) -> None:
    trained, held = (PhotoScenes(folder, (48, 64), (0,), validation=v) for v in (False, True))
    names = [
        {pair[0].stem for pairs in scenes.pairs.values() for pair in pairs if pair}
        for scenes in (trained, held)
    ]
    assert names[0] and names[1] and not names[0] & names[1]
    assert trained.key != held.key


def test_blur_is_in_proportion_to_the_phone_picture(tmp_path: Path) -> None:
    """The same scene, seen in a picture twice as large: defocus takes more away."""
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (96, 96, 3)), ("bsds-1.jpg", (96, 96, 3))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(tmp_path / name)
        depth = tmp_path / name.replace(".jpg", ".depth.png")
        Image.fromarray(np.full((96, 96), 500, np.uint16)).save(depth)
    small, large = (PhotoScenes(tmp_path, (96, 96), range(8), width) for width in (320, 640))
    assert set(small.pairs) == {"bsds", ""} and set(large.pairs) == {""}  # as crisp as that
    left = []
    for scenes in (small, large):
        shown = [(s.frames.var(-1).mean(), s.sharp) for s in scenes]
        left.append(np.mean([float(v / p.var(-1).mean()) for v, p in shown if p is not None]))
    assert left[1] < 0.8 * left[0]
    for pair in tmp_path.glob("a.*"):
        pair.unlink()
    assert not PhotoScenes(tmp_path, (96, 96), range(8), 640).names


def test_what_is_hidden_behind_an_edge_goes_on() -> None:
    """A red plate before a green wall: the wall is green behind it, and has no hole."""
    photo = np.full((64, 64, 3), (20, 200, 20), np.uint8)
    photo[16:48, 16:48] = 200, 20, 20
    dioptres = np.ones((64, 64), np.float32)
    dioptres[16:48, 16:48] = 2
    linear = lit(photo, Shoulder(), np.random.default_rng(2))
    wall, front = layers_of(linear, dioptres)
    assert wall.alpha.min() == 1 and 0.1 < front.alpha.mean() < 0.9
    hidden = wall.rgb[:, front.alpha > 0.99]
    assert hidden.shape[1] > 100
    assert torch.allclose(hidden, wall.rgb[:, 0, :1].expand_as(hidden), atol=0.01)


@pytest.mark.parametrize(
    "names",
    [
        ("lfsd-dff-007", "lfsd-lytro-007"),
        ("cave-dff-joe10", "cave-focal-sweep-joe10"),
        ("nyuv2-0061", "nyuv2-0069", "nyuv2-0070"),
        ("iphone-lidar-desk-81", "iphone-lidar-desk-82", "iphone-lidar-desk-door-304"),
        ("hci-lightfield-lytro-dinosaur", "lytro-illum-dinosaur"),
        ("hci-lightfield-cotton", "hci-refocused-cotton"),
        ("misc-person-0", "misc-person-75"),
    ],
    ids=lambda names: names[0],
)
def test_pictures_of_one_scene_are_on_one_side(names: tuple[str, ...]) -> None:
    """Neighbours of held-out photos were trained on."""
    assert len({scene_of(name) for name in names}) == 1
    assert len({is_held_out(name) for name in names}) == 1


def test_about_one_scene_in_twenty_is_held_out() -> None:
    photos = [f"{kind}-{n:04d}" for kind in ("nyuv2", "bsds", "mine") for n in range(4000)]
    scenes = {scene_of(name) for name in photos}
    assert len(scenes) == 200 + 4000 + 4000
    held_out = {scene_of(name) for name in photos if is_held_out(name)}
    assert 0.03 < len(held_out) / len(scenes) < 0.07
    assert scene_of("nyuv2-mine") == "nyuv2-mine"


def test_a_photo_is_of_the_kind_that_its_name_begins_with() -> None:
    assert kind_of("nyuv2-3") == "nyuv2"
    assert kind_of("middlebury-art") == ""


def test_each_plane_is_sharpest_where_the_lens_focuses() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (64, 64, 3), np.uint8)
    dioptres = np.full((64, 64), 2.5, np.float32)  # position 7
    dioptres[:, 32:] = 17.5  # position 1
    layers = layers_of(lit(photo, Shoulder(), np.random.default_rng(2)), dioptres)
    images = photographed(layers, Shoulder(), rng).transpose(0, 3, 1, 2) / 255
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
    in_front = float(np.mean([(d > 10).mean() for d in found]))  # of position 4
    assert 0.25 < in_front < 0.5


def test_a_folder_that_shrank_is_taken_at_larger_scales(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "shrunk.txt").write_text("0.75\n", encoding="utf-8")
    assert PhotoScenes(folder, (48, 64), ()).shrunk == 1
    assert PhotoScenes(tmp_path, (48, 64), ()).shrunk == 0.75
    for text in ("", "half", "0", "nan"):
        (tmp_path / "shrunk.txt").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"shrunk\.txt"):
            PhotoScenes(tmp_path, (48, 64), ())


def test_lights_near_white_blur_to_more_than_a_picture_shows() -> None:
    """White beads before grey: blurred, they are brighter under a tone curve with a shoulder, and
    what is sharp is the photo either way."""
    photo = np.full((64, 64, 3), 90, np.uint8)
    photo[8::16, 8::16] = 255
    dioptres = np.full((64, 64), 2.5, np.float32)
    made = []
    for shoulder in (Shoulder(), Shoulder(2.0, 8.0)):
        layers = layers_of(lit(photo, shoulder, np.random.default_rng(2)), dioptres)
        made.append(photographed(layers, shoulder, np.random.default_rng(5)).astype(float))
    plain, pressed = made
    assert np.abs(plain[FRAMES] - pressed[FRAMES]).mean() < 0.6
    beads = np.zeros((64, 64), bool)
    beads[8::16, 8::16] = True
    around = [x[0][beads].mean() - np.median(x[0]) for x in (plain, pressed)]
    assert around[1] > 1.5 * around[0]
