"""Photos with depth maps in folders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.data.rgbd import motorcycle, read_rgbd, rgbd_pairs
from pocketfocus.run.errors import UserError


def save_pair(folder: Path, name: str, metres: np.ndarray, suffix: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    photo = folder / f"{name}.png"
    Image.fromarray(np.zeros((*metres.shape, 3), np.uint8)).save(photo)
    depth = folder / f"{name}.depth{suffix}"
    if suffix == ".png":
        Image.fromarray((metres * 1000).astype(np.uint16)).save(depth)
    elif suffix == ".npy":
        np.save(depth, metres)
    else:
        np.savez(depth, metres)
    return depth


@pytest.mark.parametrize("suffix", [".png", ".npy", ".npz"])
def test_depth_files(tmp_path: Path, suffix: str) -> None:
    metres = np.full((20, 30), 2.0)
    metres[:10] = 0.5
    metres[0, 0] = 0  # unknown: taken from beside it
    save_pair(tmp_path, "desk", metres, suffix)
    ((photo, depth),) = rgbd_pairs(tmp_path)
    pair = read_rgbd(photo, depth)
    assert pair.photo.shape == (20, 30, 3)
    assert pair.dioptres[0, 0] == pair.dioptres[5, 5] == pytest.approx(2)
    assert pair.dioptres[15, 5] == pytest.approx(0.5)


def test_smaller_depth_maps_are_scaled(tmp_path: Path) -> None:
    depth = save_pair(tmp_path, "desk", np.full((10, 15), 2.0), ".npy")
    Image.new("RGB", (30, 20)).save(tmp_path / "desk.png")
    assert read_rgbd(tmp_path / "desk.png", depth).dioptres.shape == (20, 30)


def test_larger_photos_and_their_depth_are_scaled_down(tmp_path: Path) -> None:
    """A window of a few hundred pixels into a phone's own showed a scrap of the scene."""
    metres = np.full((960, 1280), 2.0)
    metres[:480] = 0.5
    metres[:, :8] = np.nan
    depth = save_pair(tmp_path, "phone", metres, ".npy")
    photo = np.zeros((960, 1280, 3), np.uint8)
    photo[480:] = 255
    Image.fromarray(photo).save(tmp_path / "phone.png")
    pair = read_rgbd(tmp_path / "phone.png", depth)
    assert pair.photo.shape == (480, 640, 3) and pair.dioptres.shape == (480, 640)
    assert (pair.dioptres[:240] == 2).all() and (pair.dioptres[240:] == 0.5).all()
    assert (pair.photo[:236] == 0).all() and (pair.photo[244:] == 255).all()


def broken(folder: Path, how: str) -> None:
    path = folder / "desk.depth.npy"
    if how == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif how == "proportions":
        np.save(path, np.ones((20, 20)))
    elif how == "empty":
        np.save(path, np.full((20, 30), np.nan))
    elif how == "stack":
        np.save(path, np.ones((20, 30, 2)))
    else:
        path.write_bytes(b"not an array")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("pickle", "pickle"),
        ("proportions", "20x20, desk.png is 30x20"),
        ("empty", "no depth above zero"),
        ("stack", r"\[20, 30, 2\]"),
        ("noise", "pickle"),
    ],
)
def test_broken_depth(tmp_path: Path, how: str, expected: str) -> None:
    save_pair(tmp_path, "desk", np.ones((20, 30)), ".npy")
    broken(tmp_path, how)
    with pytest.raises(ValueError, match=expected):
        read_rgbd(*rgbd_pairs(tmp_path)[0])


@pytest.mark.parametrize("suffix", [".png", ".npy", ".npz"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_depth_that_is_cut_short_is_broken_as_any_other(
    tmp_path: Path, suffix: str, share: float
) -> None:
    """NumPy raises EOFError for an empty file and zipfile its own, which ended a training."""
    metres = np.random.default_rng(0).uniform(0.1, 9, (64, 96))
    depth = save_pair(tmp_path, "desk", metres, suffix)
    whole = depth.read_bytes()
    depth.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"desk\.depth\{suffix} is damaged"):
        read_rgbd(*rgbd_pairs(tmp_path)[0])


def test_an_archive_whose_content_is_damaged_is_broken_too(tmp_path: Path) -> None:
    depth = save_pair(tmp_path, "desk", np.ones((64, 96)), ".npz")
    content = bytearray(depth.read_bytes())
    content[300:310] = b"0123456789"
    depth.write_bytes(content)
    with pytest.raises(ValueError, match=r"desk\.depth\.npz is damaged"):
        read_rgbd(*rgbd_pairs(tmp_path)[0])


def test_eight_bits_and_two_arrays_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "desk.jpg")
    Image.new("L", (30, 20)).save(tmp_path / "desk.depth.png")
    with pytest.raises(ValueError, match="8 bits"):
        read_rgbd(*rgbd_pairs(tmp_path)[0])
    (tmp_path / "desk.depth.png").unlink()
    np.savez(tmp_path / "desk.depth.npz", a=np.ones(2), b=np.ones(2))
    with pytest.raises(ValueError, match="a, b"):
        read_rgbd(*rgbd_pairs(tmp_path)[0])


def test_a_folder_without_depth(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "desk.jpg")
    with pytest.raises(UserError, match=r"desk|no photo with a depth map"):
        rgbd_pairs(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        rgbd_pairs(tmp_path / "nowhere")


def test_the_motorcycle_is_metres_away() -> None:
    scene = motorcycle()
    assert scene.photo.shape == (*scene.dioptres.shape, 3)
    assert np.isfinite(scene.dioptres).all()
    assert 0.1 < scene.dioptres.min() < scene.dioptres.max() < 1  # Middlebury: 2 to 5 m
