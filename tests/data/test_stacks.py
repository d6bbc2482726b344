"""Readers and the cache, on folders written here."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor

from pocketfocus.data import stacks
from pocketfocus.data.scenes import render_scene
from pocketfocus.data.stacks import (
    RenderedScenes,
    StackCache,
    StackFolder,
    cache_sources,
    read_photos,
)
from pocketfocus.run.errors import UserError
from pocketfocus.run.metrics import psnr
from tests.breathing import write_breathing

SIZE = (32, 48)


def write_scene(folder: Path, grey: list[int], stem: str = "{}.png", size: int = 16) -> Path:
    """One uniform image per grey value, named by its index."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, value in enumerate(grey):
        Image.new("RGB", (size, size), (value,) * 3).save(folder / stem.format(index))
    return folder


def cache_stacks(
    folder: Path,
    seeds: Sequence[int],
    size: tuple[int, int],
    photos: Sequence[np.ndarray] = (),
) -> StackCache:
    """The cache of rendered scenes."""
    return cache_sources(folder, [RenderedScenes(seeds, size, photos)], size)


def greys(n: int) -> list[int]:
    return [10 * index for index in range(n)]


def test_nine_images_become_a_stack_in_natural_order(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "mug", greys(9), "f{}.png")
    (scene / "f2.png").rename(scene / "f02.png")
    (scene / "notes.txt").write_text("not an image")
    (only,) = StackFolder(tmp_path)
    assert only.name == "mug"
    assert only.positions == tuple(range(9))
    assert only.frames.shape == (9, 3, 16, 16)
    assert torch.allclose(only.frames[:, 0, 0, 0], torch.tensor(greys(9)) / 127.5 - 1)


def test_ten_comes_after_nine_with_positions(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "a", greys(11))
    (scene / "positions.txt").write_text("\n".join(str(0.8 * n) for n in range(10)) + "\n8\n")
    (only,) = StackFolder(tmp_path)
    assert only.positions == pytest.approx([0.8 * n for n in range(10)] + [8])
    assert bool((only.frames[1:, 0, 0, 0] > only.frames[:-1, 0, 0, 0]).all())


def test_other_positions_are_another_source(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "a", greys(9))
    keys = [StackFolder(tmp_path).key]
    for last in (8, 7.5):
        (scene / "positions.txt").write_text("\n".join(map(str, [*range(8), last])) + "\n")
        keys.append(StackFolder(tmp_path).key)
    assert keys[0] == keys[1] != keys[2]


def test_images_that_were_rewritten_at_the_same_size_are_another_source(tmp_path: Path) -> None:
    """Uncompressed files are as large whatever they show."""
    image = write_scene(tmp_path / "a", greys(9), "{}.bmp") / "4.bmp"
    before, size = StackFolder(tmp_path).key, image.stat().st_size
    Image.new("RGB", (16, 16), (9, 9, 9)).save(image)
    assert image.stat().st_size == size and StackFolder(tmp_path).key != before


def test_learn2refocus_layout(tmp_path: Path) -> None:
    rig = tmp_path / "FSK_1" / "midsize" / "undistorted" / "RigCenter0"
    write_scene(rig, greys(9), "focal_position_000{}_frame_0000.jpg")
    (only,) = StackFolder(tmp_path, (8, 12))
    assert only.name == "FSK_1"
    assert only.frames.shape == (9, 3, 8, 12)


def bright_box(pixels: Tensor) -> tuple[int, int]:
    """How many rows and columns [H, W] of a picture are brighter than half at their brightest."""
    return int((pixels.amax(1) > 0).sum()), int((pixels.amax(0) > 0).sum())


def test_what_the_lens_saw_is_known_of_frames_that_were_squeezed(tmp_path: Path) -> None:
    rig = tmp_path / "rig" / "FSK_1" / "midsize" / "undistorted" / "RigCenter"
    drawn = np.zeros((112, 80, 3), np.uint8)  # 5:7, of a photo of 3:4 with a square on it
    drawn[36:76, 21:59] = 255
    for folder in (rig, tmp_path / "plain" / "desk"):
        folder.mkdir(parents=True)
        for n in range(9):
            Image.fromarray(drawn).save(folder / f"{n}.png")
    for name, proportions in (("rig", 3 / 4), ("plain", 80 / 112)):
        for size in (None, (64, 64)):
            (stack,) = StackFolder(tmp_path / name, size)
            assert stack.aspect == proportions
    (cropped,) = StackFolder(tmp_path / "rig", (96, 72), crop=True)
    assert cropped.aspect == 3 / 4
    rows, columns = bright_box(cropped.frames[0, 0])
    assert rows == pytest.approx(columns, abs=1)
    (own,) = StackFolder(tmp_path / "plain", (96, 72), crop=True)
    rows, columns = bright_box(own.frames[0, 0])
    assert rows == pytest.approx(columns * 40 / 38, abs=1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0\n4\n", "2 positions for 3 images"),
        ("0\nfour\n8\n", "not a list of numbers"),
        ("0\n4\n9\n", "outside 0..8"),
        ("0\n4\nnan\n", "outside 0..8"),
        ("0\n4\n4\n", "does not ascend"),
        ("3\n", "at least 2"),
        ("\xff\xfe", "not a list of numbers"),
    ],
)
def test_bad_positions_skip_the_scene_and_say_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    write_scene(tmp_path / "good", greys(9))
    bad = write_scene(tmp_path / "bad", greys(3))
    (bad / "positions.txt").write_bytes(text.encode("latin-1"))
    folder = StackFolder(tmp_path)
    assert [stack.name for stack in folder] == ["good"]
    assert len(folder) == 1
    assert reason in folder.skipped["bad"]
    (said,) = capsys.readouterr().err.splitlines()
    assert "bad" in said


def test_short_broken_and_unequal_scenes_are_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path / "good", greys(9))
    write_scene(tmp_path / "short", greys(5))
    broken = write_scene(tmp_path / "truncated", greys(9), "{}.jpg", 64)
    whole = (broken / "4.jpg").read_bytes()
    (broken / "4.jpg").write_bytes(whole[: len(whole) // 2])
    garbage = write_scene(tmp_path / "garbage", greys(9))
    (garbage / "0.png").write_bytes(b"no image")
    unequal = write_scene(tmp_path / "unequal", greys(9))
    Image.new("RGB", (9, 9)).save(unequal / "8.png")
    folder = StackFolder(tmp_path)
    assert len(folder) == 4  # what is in the files shows when they are opened
    assert [stack.name for stack in folder] == ["good"]
    assert len(folder) == 1
    assert set(folder.skipped) == {"short", "truncated", "garbage", "unequal"}
    assert "5 images instead of 9" in capsys.readouterr().err
    assert [stack.name for stack in folder] == ["good"]


def test_nothing_usable_names_folder_and_layout(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"empty holds no usable focal stack.*positions.txt"):
        StackFolder(empty)
    with pytest.raises(UserError, match="not a folder"):
        StackFolder(tmp_path / "absent")
    broken = write_scene(tmp_path / "all" / "broken", greys(9))
    (broken / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 skipped"):
        list(StackFolder(tmp_path / "all"))


def test_frames_that_move_are_registered(tmp_path: Path) -> None:
    """A lens that breathes: registered, every frame is nearer to what it shows in place."""
    still = render_scene(3, (144, 192))
    step = torch.tensor([0.002, 0.0, 0.006, 0.0, 0.0, 0.006, -0.004])
    write_breathing(tmp_path / "mug", still, step)
    as_it_lies, registered = StackFolder(tmp_path), StackFolder(tmp_path, register=True)
    assert as_it_lies.key != registered.key == StackFolder(tmp_path, register=True).key
    (one,), (other,) = as_it_lies, registered
    assert torch.equal(one.frames[4], other.frames[4])
    inner = (..., slice(8, -8), slice(8, -8))
    for n in (0, 2, 6, 8):
        assert psnr(other.frames[n][inner], still[n][inner]) > 3 + psnr(
            one.frames[n][inner], still[n][inner]
        )
    for size in ((72, 96), (36, 48)):  # the second of frames that are halved before
        (smaller,) = StackFolder(tmp_path, size, register=True)
        assert smaller.frames.shape == (9, 3, *size) and smaller.aspect == 4 / 3
        (as_they_lie,) = StackFolder(tmp_path, size)
        true = torch.nn.functional.interpolate(still, size, mode="bicubic", antialias=True)
        edge = size[0] // 12
        inside = (..., slice(edge, -edge), slice(edge, -edge))
        assert psnr(smaller.frames[0][inside], true[0][inside]) > 2 + psnr(
            as_they_lie.frames[0][inside], true[0][inside]
        )


def test_resize_is_pillow_lanczos(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    scene = tmp_path / "noise"
    scene.mkdir()
    for index in range(9):
        Image.fromarray(pixels).save(scene / f"{index}.png")
    (only,) = StackFolder(tmp_path, (20, 24))
    wanted = Image.fromarray(pixels).resize((24, 20), Image.Resampling.LANCZOS)
    got = ((only.frames[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert np.array_equal(got, np.asarray(wanted))


def test_photos_in_natural_order_or_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no photo"):
        read_photos(tmp_path)
    write_scene(tmp_path, greys(11), "p{}.PNG")
    assert [p.name for p in read_photos(tmp_path)] == [f"p{n}.PNG" for n in range(11)]


def test_synthetic_stacks_are_the_scenes_of_their_seeds() -> None:
    first, second = RenderedScenes(range(5, 7), SIZE)
    assert torch.equal(first.frames, render_scene(5, SIZE))
    assert second.name == "synthetic-6"


def test_cache_holds_the_rendered_stacks_within_a_rounding(tmp_path: Path) -> None:
    cache = cache_stacks(tmp_path / "cache", [3, 5], SIZE)
    assert len(cache) == 2
    assert float((cache[1].frames - render_scene(5, SIZE)).abs().max()) <= 1 / 255 + 1e-6
    assert [stack.name for stack in cache[:]] == ["synthetic-3", "synthetic-5"]
    assert cache[-1].name == "synthetic-5"


def test_a_finished_cache_is_reused_and_another_key_renders_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []

    def counted(seed: int, *rest: object) -> torch.Tensor:
        rendered.append(seed)
        return torch.zeros(9, 3, *SIZE)

    monkeypatch.setattr(stacks, "render_scene", counted)
    cache_stacks(tmp_path, [1, 2], SIZE)
    cache_stacks(tmp_path, [1, 2], SIZE)
    assert rendered == [1, 2]
    cache_stacks(tmp_path, [1, 2], SIZE, [np.zeros((8, 8, 3), np.uint8)])
    assert rendered == [1, 2, 1, 2]


def test_an_interrupted_cache_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []

    def interrupted(seed: int, *rest: object) -> torch.Tensor:
        if seed == 35 and seed not in rendered:
            rendered.append(seed)
            raise KeyboardInterrupt
        rendered.append(seed)
        return torch.full((9, 3, 4, 4), seed / 64)

    monkeypatch.setattr(stacks, "render_scene", interrupted)
    monkeypatch.setattr(stacks, "cores", lambda: 1)  # other processes render the true scenes
    with pytest.raises(KeyboardInterrupt):
        cache_stacks(tmp_path, range(40), (4, 4))
    taken = (tmp_path / "stacks.npy").stat()
    assert taken.st_blocks * 512 >= taken.st_size  # what is not rendered yet has its space
    rendered.remove(32)
    cache = cache_stacks(tmp_path, range(40), (4, 4))
    assert rendered[-8:] == list(range(32, 40))
    assert [round(float(s.frames.mean()) * 64) for s in cache] == list(range(40))


def test_two_that_begin_the_same_cache_fill_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second once replaced the files that the first still wrote to: black scenes for good."""
    rendered: list[int] = []

    def slow(seed: int, *rest: object) -> torch.Tensor:
        rendered.append(seed)
        time.sleep(0.3)
        return torch.full((9, 3, *SIZE), seed / 8)

    monkeypatch.setattr(stacks, "render_scene", slow)
    monkeypatch.setattr(stacks, "track", lambda work, *_: work)
    with ThreadPoolExecutor() as pool:
        begun = [pool.submit(cache_stacks, tmp_path, range(1, 5), SIZE) for _ in range(2)]
        found = [each.result() for each in begun]
    assert rendered == [1, 2, 3, 4]
    for cache in (*found, cache_stacks(tmp_path, range(1, 5), SIZE)):
        means = [float(stack.frames.mean()) for stack in cache]
        assert means == pytest.approx([0.125, 0.25, 0.375, 0.5], abs=1e-2)


@pytest.mark.parametrize("left", [0, 200])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, left: int) -> None:
    cache_stacks(tmp_path, [1], SIZE)
    content = (tmp_path / "stacks.npy").read_bytes()
    (tmp_path / "stacks.npy").write_bytes(content[:left])
    assert len(cache_stacks(tmp_path, [1], SIZE)) == 1
    assert (tmp_path / "stacks.npy").read_bytes() == content


def test_many_scenes_are_rendered_by_several_processes_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = cache_stacks(tmp_path / "alone", range(3), SIZE)
    monkeypatch.setattr(stacks, "WORTH_SHARING", 2)
    monkeypatch.setattr(stacks, "cores", lambda: 2)
    shared = cache_stacks(tmp_path / "shared", range(3), SIZE)
    assert shared.names == alone.names
    assert np.array_equal(shared.pixels, alone.pixels)


def test_scenes_beside_a_folder_are_rendered_by_several_processes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder among the sources once left them to one."""
    write_scene(tmp_path / "folder" / "mine", greys(9))
    sources = [RenderedScenes(range(2), SIZE), StackFolder(tmp_path / "folder", SIZE)]
    monkeypatch.setattr(stacks, "WORTH_SHARING", 2)
    monkeypatch.setattr(stacks, "cores", lambda: 2)
    monkeypatch.setattr(RenderedScenes, "load", None)  # of this process alone
    cache = cache_sources(tmp_path / "cache", sources, SIZE)
    assert cache.names == ("synthetic-0", "synthetic-1", "mine")


def test_photos_are_known_by_content_and_broken_ones_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    names = {"1.avif": "AVIF", "2.bmp": "BMP", "3.jp2": "JPEG2000", "4.heic": "HEIF", "5": "PNG"}
    for name, kind in {**names, "6.jpg": "JPEG", "7.jpg": "JPEG"}.items():
        Image.fromarray(pixels).save(tmp_path / name, kind)
    for name, start in (("notes.txt", b"no photo"), ("9.mov", b"\0\0\0\x14ftypqt  ")):
        (tmp_path / name).write_bytes(start)
    (tmp_path / "10.cr3").write_bytes(b"\0\0\0\x18ftypcrx " + bytes(40))
    whole = (tmp_path / "6.jpg").read_bytes()
    (tmp_path / "6.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "8.png").write_bytes(b"")
    assert [path.name for path in read_photos(tmp_path)] == [*names, "7.jpg"]
    said = capsys.readouterr().err
    assert "3 of 9 photos in" in said and "6.jpg is damaged" in said and "8.png is empty" in said
    assert "10.cr3 is a raw photo (CR3)" in said and "9.mov" not in said


RENDERS = """
import sys
from pathlib import Path
from pocketfocus.data import stacks
from pocketfocus.run.ending import SIGNALS, as_interrupted

if __name__ == "__main__":
    stacks.WORTH_SHARING, stacks.cores = 2, lambda: 2
    with as_interrupted(*SIGNALS):
        source = stacks.RenderedScenes(range(10_000), (64, 64))
        stacks.cache_sources(Path(sys.argv[1]), [source], (64, 64))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_that_render_end_with_the_one_that_started_them(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "renders.py").write_text(RENDERS)
    words = [sys.executable, str(tmp_path / "renders.py"), str(tmp_path / "stacks")]
    parent = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        renders = [psutil.Process(parent.pid)]
        wait_for(lambda: len(renders[0].children(recursive=True)) >= 3)  # and a resource tracker
        renders += renders[0].children(recursive=True)
    finally:
        parent.send_signal(number)
    parent.wait(60)
    wait_for(lambda: not any(map(is_running, renders)))


def is_running(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
