"""The files of nine frames: all of them or none."""

from __future__ import annotations

import base64
import errno
import io
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.filters import gaussian
from torch import Tensor

from pocketfocus.data.scenes import bundled_photos
from pocketfocus.photos import gallery
from pocketfocus.photos.focusmap import all_in_focus
from pocketfocus.photos.gallery import save_refocus
from pocketfocus.photos.images import to_tensor, to_uint8
from pocketfocus.photos.refocusing import Enlarged
from pocketfocus.run import scratch
from pocketfocus.run.errors import UserError

LEFT, RIGHT = 2, 7  # the frames in which the halves of the test stack are sharp
H, W = 96, 144
NAMES = sorted(
    [f"frame_{i}.png" for i in range(9)]
    + ["stack.gif", "stack.mp4", "all_in_focus.png", "focus_map.png", "index.html"]
)


def blurred(photo: Tensor, sigma: float) -> Tensor:
    """A photo [1, 3, H, W] under a Gaussian."""
    return torch.from_numpy(gaussian(photo.numpy(), (0, 0, sigma, sigma), mode="reflect"))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(bundled_photos()["chelsea"]).crop((60, 20, 348, 212)).resize((W, H))


@pytest.fixture(scope="module")
def stack(photo: Image.Image) -> Tensor:
    """The photo, its left half sharp in frame LEFT and its right half in frame RIGHT."""
    sharp, frames = to_tensor(photo), []
    for t in range(9):
        near, far = (blurred(sharp, 0.8 * abs(t - at)) for at in (LEFT, RIGHT))
        frames.append(torch.cat([near[..., : W // 2], far[..., W // 2 :]], -1))
    return torch.cat(frames)


def save(stack: Tensor, photo: Image.Image, position: int, out: Path, name: str) -> list[Path]:
    """What a model's stack becomes, its frames as large as they are."""
    height, width = stack.shape[-2:]
    return save_refocus(Enlarged(stack, (height, width)), np.asarray(photo), position, out, name)


# files


@pytest.fixture(scope="module")
def folder(stack: Tensor, photo: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What save_refocus writes."""
    out = tmp_path_factory.mktemp("refocus") / "deep" / "out"
    written = save(stack, photo, 4, out, 'student <b>"int8"</b>.pte')
    assert sorted(written) == [out / name for name in NAMES]
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_files(folder: Path, stack: Tensor) -> None:
    assert sorted(p.name for p in folder.iterdir()) == NAMES
    frames = to_uint8(stack)
    for i in range(9):
        assert np.array_equal(np.asarray(Image.open(folder / f"frame_{i}.png")), frames[i])
    fused = np.asarray(Image.open(folder / "all_in_focus.png"))
    assert np.array_equal(fused, to_uint8(all_in_focus(stack)[None])[0])


@pytest.mark.parametrize(("name", "rounds"), [("stack.gif", 1), ("stack.mp4", 3)])
def test_moving_pictures_go_near_far_near(
    name: str, rounds: int, folder: Path, stack: Tensor
) -> None:
    moving = np.stack(list(imageio.imiter(folder / name)))
    there_and_back = [*range(9), *range(7, 0, -1)] * rounds
    assert moving.shape == (len(there_and_back), H, W, 3)
    frames = to_uint8(stack).astype(float)
    for found, index in zip(moving.astype(float), there_and_back, strict=True):
        errors = np.abs(found - frames).mean((1, 2, 3))
        assert errors[index] < 5
        assert errors[index] <= errors.min() + 0.3


def test_odd_sizes(tmp_path: Path, stack: Tensor, photo: Image.Image) -> None:
    save(stack[..., :33, :51], photo.crop((0, 0, 51, 33)), 0, tmp_path, "echo")
    assert Image.open(tmp_path / "frame_3.png").size == (51, 33)
    assert imageio.improps(tmp_path / "stack.mp4").shape[1:] == (32, 50, 3)


def test_frames_are_as_large_as_they_are_and_what_plays_them_is_not(
    tmp_path: Path, stack: Tensor, photo: Image.Image
) -> None:
    save_refocus(Enlarged(stack, (250, 1305)), np.asarray(photo), 4, tmp_path, "echo")
    for name in ("frame_0.png", "frame_8.png", "all_in_focus.png"):
        assert Image.open(tmp_path / name).size == (1305, 250)
    assert Image.open(tmp_path / "stack.gif").size == (1280, 245)
    assert imageio.improps(tmp_path / "stack.mp4").shape[1:] == (244, 1280, 3)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    kept = [base64.b64decode(data) for data in re.findall(r"data:image/webp;base64,([^\"]+)", page)]
    assert max(max(Image.open(io.BytesIO(data)).size) for data in kept) == 1280


def test_focus_map_shows_both_halves_and_a_legend(folder: Path) -> None:
    from matplotlib import colormaps

    picture = np.asarray(Image.open(folder / "focus_map.png").convert("RGB")).astype(int)
    colour = {i: np.array(colormaps["viridis"](i / 8, bytes=True)[:3], int) for i in range(9)}
    near = np.abs(picture - colour[LEFT]).sum(-1) < 40
    far = np.abs(picture - colour[RIGHT]).sum(-1) < 40
    assert near.mean() > 0.15
    assert far.mean() > 0.15
    assert np.nonzero(near)[1].mean() < np.nonzero(far)[1].mean()
    assert (np.abs(picture - colour[0]).sum(-1) < 20).sum() > 20  # only the legend has frame 0
    white = (picture == 255).all(-1)
    assert white.mean() > 0.1


def test_page_is_one_file_and_escapes_names(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") == 9 + 3
    without_pictures = re.sub(r'"data:[^"]+"', "", page)
    assert not re.search(r"https?:|url\(|[\"'(]//", without_pictures)
    assert set(re.findall(r'src="(.{5})', page)) == {"data:"}
    assert "<b>" not in page
    assert set(re.findall(r'href="([^"]+)" download', page)) == set(NAMES) - {"index.html"}


def test_other_files_stay_and_old_ones_are_replaced(
    tmp_path: Path, stack: Tensor, photo: Image.Image
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "frame_0.png").write_text("old")
    save(stack, photo, 4, tmp_path, "echo")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*NAMES, "mine.txt"])
    assert Image.open(tmp_path / "frame_0.png").size == (W, H)


@pytest.fixture(params=["new folder", "folder with files"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    if request.param != "new folder":
        folder.mkdir()
        (folder / "mine.txt").write_text("keep")
        (folder / "frame_5.png").write_text("old")
    return folder


@pytest.fixture
def unchanged(out: Path) -> Iterator[None]:
    """After the test everything lies as before it."""
    before = contents(out) if out.exists() else None
    yield
    if before is None:
        assert not out.exists()
    else:
        assert contents(out) == before
        assert len(list(out.iterdir())) == len(before)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("limit", [20_000, 64_000])
def test_full_disk(limit: int, out: Path, stack: Tensor, photo: Image.Image) -> None:
    """The system's limit on a file's size stands in for a full disk: writes really fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError) as caught:
            save(stack, photo, 4, out, "echo")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"cannot write {out}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [500, 5_000])
def test_video_cut_short_by_a_full_disk(limit: int, stack: Tensor, tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in to_uint8(stack)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"^ffmpeg could not write all of stack\.mp4$"):
            gallery._save_mp4(frames, tmp_path / "stack.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_interrupted_while_moving(
    error: BaseException,
    out: Path,
    stack: Tensor,
    photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rename, done = os.rename, []
    monkeypatch.setattr(scratch, "exchange", lambda one, other: False)

    def interrupted(source: Path, target: Path) -> None:
        done.append(target)
        if len(done) == 9:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save(stack, photo, 4, out, "echo")
    assert len(done) > 9  # what had been moved was put back


@pytest.mark.usefixtures("unchanged")
def test_interrupted_while_writing(
    out: Path, stack: Tensor, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gallery, "_focus_figure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(stack, photo, 4, out, "echo")


def test_folder_in_the_way_is_kept(tmp_path: Path, stack: Tensor, photo: Image.Image) -> None:
    (tmp_path / "index.html").mkdir()
    (tmp_path / "index.html" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"index\.html in it is a folder"):
        save(stack, photo, 4, tmp_path, "echo")
    assert [p.name for p in tmp_path.rglob("*")] == ["index.html", "mine.txt"]


def test_out_is_a_file(tmp_path: Path, stack: Tensor, photo: Image.Image) -> None:
    (tmp_path / "out").write_text("keep")
    with pytest.raises(UserError, match="cannot write"):
        save(stack, photo, 4, tmp_path / "out", "echo")
    assert (tmp_path / "out").read_text() == "keep"


@pytest.mark.parametrize("position", [-1, 9])
def test_position_outside_the_stack(
    position: int, photo: Image.Image, stack: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"position {position} is outside 0\.\.8"):
        save(stack, photo, position, tmp_path / "out", "echo")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["out", "deep/out"])
def test_read_only_folder(name: str, tmp_path: Path, stack: Tensor, photo: Image.Image) -> None:
    user = os.geteuid()
    tmp_path.chmod(0o500)
    if user == 0:
        os.seteuid(65534)  # root writes anywhere; nobody does not
    try:
        with pytest.raises(UserError, match=r"cannot write .*: Permission denied"):
            save(stack, photo, 4, tmp_path / name, "echo")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())
