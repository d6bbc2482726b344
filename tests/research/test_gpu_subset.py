from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.data.photo_scenes import PhotoScenes
from pocketfocus.data.rgbd import read_rgbd, rgbd_pairs
from pocketfocus.research.gpu_subset import main, subset
from pocketfocus.run.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    found = tmp_path / "rgbd"
    found.mkdir()
    for name in (*(f"bsds-{n}" for n in range(6)), "lfsd-1", "mine"):
        Image.fromarray(rng.integers(0, 255, (64, 96, 3), np.uint8)).save(found / f"{name}.jpg")
        depth = np.full((64, 96), 500, np.uint16)
        depth[40:] = 250
        Image.fromarray(depth).save(found / f"{name}.depth.png")
    return found


def test_the_largest_source_is_thinned_until_all_fit(folder: Path, tmp_path: Path) -> None:
    everything, size = subset(folder, tmp_path / "all", 0.5, 10**9)
    count, smaller = subset(folder, tmp_path / "some", 0.5, int(0.7 * size))
    assert everything == 8 and 4 <= count < 8
    assert smaller <= 0.7 * size
    names = {photo.stem for photo, _ in rgbd_pairs(tmp_path / "some")}
    assert {"lfsd-1", "mine"} < names


def test_portraits_stay_upright_and_depth_of_every_kind_comes_along(
    folder: Path, tmp_path: Path
) -> None:
    """A phone stores a portrait sideways and says so in EXIF; its depth map is upright."""
    upright = np.zeros((96, 64, 3), np.uint8)
    upright[:48] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(folder / "portrait.jpg", exif=turned)
    metres = np.full((96, 64), 2.0)
    metres[:48], metres[90:] = 0.25, 1000.0
    np.save(folder / "portrait.depth.npy", metres)
    subset(folder, tmp_path / "half", 0.5, 10**9)
    found = {photo.stem: (photo, depth) for photo, depth in rgbd_pairs(tmp_path / "half")}
    pair = read_rgbd(*found["portrait"])
    assert pair.photo.shape == (48, 32, 3)
    assert pair.photo[:20].min() > 240 and pair.photo[28:].max() < 15
    assert pair.dioptres[:20] == pytest.approx(4) and pair.dioptres[28:44] == pytest.approx(0.5)
    assert pair.dioptres[-1, 0] == pytest.approx(1 / 65.535)


def test_broken_pairs_are_said_and_nothing_else_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.depth.png").write_bytes(b"")
    assert subset(folder, tmp_path / "some", 0.5, 10**9)[0] == 7
    assert "mine skipped: mine.depth.png is damaged" in " ".join(capsys.readouterr().err.split())
    for depth in folder.glob("*.depth.png"):
        depth.write_bytes(b"")
    with pytest.raises(UserError, match="no photo with depth that can be read"):
        subset(folder, tmp_path / "none", 0.5, 10**9)


def test_scenes_are_made_of_it_as_of_the_whole(folder: Path, tmp_path: Path) -> None:
    subset(folder, tmp_path / "half", 0.5, 10**9)
    scenes = PhotoScenes(tmp_path / "half", (32, 48), (0,))
    assert scenes.shrunk == 0.5
    scene = scenes.load(0)
    assert scene is not None and scene.frames.shape == (9, 3, 32, 48)


def test_a_limit_that_holds_nothing_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="raise --megabytes"):
        subset(folder, tmp_path / "none", 0.5, 100)
    with pytest.raises(UserError, match="--shrink 2 scales nothing down"):
        subset(folder, tmp_path / "none", 2, 10**9)
    assert not (tmp_path / "none").exists()
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "missing"), str(tmp_path / "out")])
    assert stop.value.code == 2
