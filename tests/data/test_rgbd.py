"""Scenes from a photo and its depth, on a plate in front of a wall."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfocus.data.optics import Camera, dioptres, render_stack
from pocketfocus.data.rgbd import RGBD, motorcycle, read_rgbd, rgbd_layers, rgbd_pairs
from pocketfocus.data.scenes import photograph
from pocketfocus.run.errors import UserError

SIZE = (48, 48)
RED, GREEN = (200, 20, 20), (20, 200, 20)


def plate(size: int = 64) -> RGBD:
    """A red plate in the middle at 2 D before a green wall at 1 D."""
    photo = np.full((size, size, 3), GREEN, np.uint8)
    depth = np.ones((size, size), np.float32)
    photo[size // 4 : -size // 4, size // 4 : -size // 4] = RED
    depth[size // 4 : -size // 4, size // 4 : -size // 4] = 2
    return RGBD("plate", photo, depth)


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


def test_the_wall_goes_on_behind_the_plate() -> None:
    wall, front = rgbd_layers(plate(), 0, SIZE)
    assert wall.alpha.min() == 1
    hidden = wall.rgb[:, front.alpha > 0.99]
    assert hidden.shape[1] > 100
    assert torch.allclose(hidden, wall.rgb[:, 0, :1].expand_as(hidden), atol=0.01)
    assert 0.1 < front.alpha.mean() < 0.9
    assert torch.allclose(front.dioptres / wall.dioptres, torch.tensor(2.0), rtol=1e-3)


def test_a_pair_is_scaled_to_a_close_up_and_keeps_its_proportions() -> None:
    nearest = [float(rgbd_layers(plate(), seed, SIZE)[-1].dioptres.max()) for seed in range(6)]
    assert all(8 <= value <= 20 for value in nearest)
    assert len(set(nearest)) == 6


def test_the_plate_is_sharp_where_it_lies() -> None:
    layers = rgbd_layers(plate(256), 3, (160, 160))
    at = float(layers[-1].dioptres.max())
    position = next(p for p in range(9) if abs(dioptres(p) - at) <= 1.25)
    stack = render_stack(layers, Camera())
    edges = stack.diff(dim=-1).abs().amax(dim=(1, 2, 3))
    assert int(edges.argmax()) in (position - 1, position, position + 1)
    assert edges.max() > 1.3 * edges.min()


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
    stack = photograph(rgbd_layers(scene, 1, (64, 64)), 1)
    assert stack.shape == (9, 3, 64, 64)
    assert float((stack[0] - stack[8]).abs().mean()) > 0.02
