"""Every source through one interface, gathered into one cache."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfocus.data import datasets
from pocketfocus.data.datasets import TEST, Request, Textures, is_rgbd, open_source, scene_list
from pocketfocus.data.scenes import VALIDATION_SEED, bundled_photos
from pocketfocus.data.stacks import RenderedScenes, cache_sources
from pocketfocus.run.errors import UserError
from tests.data.test_rgbd import save_pair
from tests.data.test_stacks import greys, write_scene

SIZE = (32, 32)
REQUEST = Request(2, SIZE)


def test_synthetic_scenes_of_both_splits_differ() -> None:
    train = open_source("synthetic", REQUEST)
    test = open_source("synthetic", Request(2, SIZE, TEST))
    assert train.names == ("synthetic-0", "synthetic-1")
    assert test.names[0] == "synthetic-1000000"
    assert train.key != test.key


def test_photos_become_textures(tmp_path: Path) -> None:
    Image.new("RGB", (1800, 300), (250, 0, 250)).save(tmp_path / "a.png")
    found = Textures([tmp_path / "a.png"], [np.zeros((4, 4, 3), np.uint8)])
    assert [each.shape for each in found] == [(4, 4, 3), (150, 900, 3)]
    source = open_source(f"photos:{tmp_path}", REQUEST)
    assert source.key != open_source("synthetic", REQUEST).key
    assert (
        source.key == open_source("synthetic", Request(2, SIZE, photos=(tmp_path / "a.png",))).key
    )


def test_textures_are_decoded_as_they_are_asked_for_and_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 photos took 0.8 GB in every process that renders."""
    for number in range(9):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(datasets, "texture", lru_cache(2)(datasets.texture.__wrapped__))
    source = open_source(f"photos:{tmp_path}", REQUEST)
    assert isinstance(source, RenderedScenes)
    assert datasets.texture.cache_info().misses == 0
    assert [int(photo[0, 0, 0]) for photo in source.photos][-9:] == list(range(9))
    assert datasets.texture.cache_info().currsize == 2


def test_scenes_of_rgbd_pairs_differ_and_broken_pairs_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metres = np.linspace(0.5, 2, 40)[:, None].repeat(40, 1)
    save_pair(tmp_path, "a", metres, ".npy")
    Image.fromarray(bundled_photos()["coffee"][:40, :40]).save(tmp_path / "a.png")
    save_pair(tmp_path, "b", metres, ".npy").write_bytes(b"")
    source = open_source(f"rgbd:{tmp_path}", Request(8, SIZE))
    found = list(source)
    assert 2 <= len(found) <= 6  # a pair is drawn by chance
    assert float((found[0].frames - found[1].frames).abs().mean()) > 0.01
    said = capsys.readouterr().err
    assert said.count("b skipped") == 1 and "b.depth.npy is damaged" in " ".join(said.split())


@pytest.mark.parametrize("spec", ["synthetic", "rgbd"])
def test_another_seed_has_other_scenes_to_learn_from_and_the_same_to_be_tested_on(
    spec: str,
) -> None:
    first, other = (open_source(spec, Request(30, SIZE, seed=seed)) for seed in (0, 3))
    assert not set(first.names) & set(other.names) and first.key != other.key
    tested = [open_source(spec, Request(3, SIZE, TEST, seed=seed)).names for seed in (0, 3)]
    assert tested[0] == tested[1] and not set(tested[0]) & set(other.names)
    highest = max(Request(20_000, SIZE, seed=seed).seeds[-1] for seed in range(200))
    assert highest < VALIDATION_SEED


def test_the_bundled_pair() -> None:
    source = open_source("rgbd", Request(1, (48, 64)))
    stack = source.load(0)
    assert stack is not None
    assert stack.frames.shape == (9, 3, 48, 64)


def test_scene_lists_choose_the_split(tmp_path: Path) -> None:
    for name in "abc":
        write_scene(tmp_path / name, greys(9))
    assert open_source(str(tmp_path), REQUEST).names == ("a", "b", "c")
    (tmp_path / "train_scenes.txt").write_text("a\nc\n")
    (tmp_path / "test_scenes.txt").write_text("b\n")
    assert open_source(str(tmp_path), REQUEST).names == ("a", "c")
    assert open_source(str(tmp_path), Request(1, SIZE, TEST)).names == ("b",)


def test_listed_scenes_that_are_not_there_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        write_scene(tmp_path / name, greys(9))
    (tmp_path / "train_scenes.txt").write_text("a\nB\nc.zip\nmissing\n")
    assert open_source(str(tmp_path), REQUEST).names == ("a",)
    said = " ".join(capsys.readouterr().err.split())
    assert "3 of 4 scenes" in said and "are not there: B, c.zip, missing" in said
    (tmp_path / "train_scenes.txt").write_text("\n".join(f"missing{n}" for n in range(9)))
    with pytest.raises(UserError, match=r"none of the 9 scenes .* \(missing0, missing1"):
        open_source(str(tmp_path), REQUEST)
    (tmp_path / "train_scenes.txt").write_bytes(b"\xff\xfea\0")  # UTF-16
    with pytest.raises(UserError, match="save it as UTF-8"):
        open_source(str(tmp_path), REQUEST)


def test_pickled_and_empty_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test_scenes.pkl").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"test_scenes\.txt"):
        scene_list(tmp_path, TEST)
    (tmp_path / "test_scenes.txt").write_text("\n")
    with pytest.raises(UserError, match="empty"):
        scene_list(tmp_path, TEST)


@pytest.mark.parametrize("spec", ["nowhere", "stacks:x", "synthetic:9"])
def test_unknown_sources_are_refused(spec: str) -> None:
    with pytest.raises(UserError, match=spec):
        open_source(spec, REQUEST)


def test_proportions_are_kept_by_cropping(tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    folder.mkdir()
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # the middle square
    for index in range(9):
        Image.fromarray(wide).save(folder / f"{index}.png")
    cropped = open_source(str(tmp_path), Request(1, SIZE)).load(0)
    squeezed = open_source(str(tmp_path), Request(1, SIZE, crop=False)).load(0)
    assert cropped is not None and squeezed is not None
    assert cropped.frames[..., 2:-2].min() > 0.9  # the edges see a little of what is cut off
    assert squeezed.frames.min() == -1


def test_sources_are_gathered_counted_and_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    write_scene(data / "good", greys(9))
    write_scene(data / "broken", greys(9))
    (data / "broken" / "4.png").write_bytes(b"no image")
    between = write_scene(data / "between", greys(3))
    (between / "positions.txt").write_text("0\n1.5\n8\n")

    def gather() -> tuple[str, ...]:
        sources = [open_source(str(data), REQUEST), open_source("synthetic", REQUEST)]
        return cache_sources(tmp_path / "cache", sources, SIZE).names

    assert gather() == ("good", "synthetic-0", "synthetic-1")
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 5 scenes skipped" in said
    assert "between skipped: training needs frames at 0 to 8" in said
    monkeypatch.setattr("pocketfocus.data.stacks.render_scene", None)  # none is rendered again
    assert gather() == ("good", "synthetic-0", "synthetic-1")


def test_a_cache_keeps_what_is_sharp_everywhere_and_dioptres_where_they_are_known(
    tmp_path: Path,
) -> None:
    sources = [open_source(spec, REQUEST) for spec in ("synthetic", "rgbd")]
    cache, scene = cache_sources(tmp_path, sources, SIZE), sources[1].load(0)
    assert cache.images.shape == (4, 10, 3, *SIZE) and cache.dioptres.shape == (4, 8, 8)
    assert [stack.sharp is None for stack in cache] == [True, True, False, False]
    assert scene is not None and scene.sharp is not None and scene.dioptres is not None
    kept = cache[2]
    assert kept.sharp is not None and kept.dioptres is not None
    assert torch.equal(kept.sharp, scene.sharp) and torch.equal(kept.frames, scene.frames)
    torch.testing.assert_close(kept.dioptres, scene.dioptres, rtol=1e-3, atol=1e-3)
    assert cache.part(slice(3, None)).names == ("rgbd-1",)


def test_a_folder_named_as_a_kind_of_source_shadows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./NAME` is the folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("synthetic", "rgbd"):
        (tmp_path / name).mkdir()
        assert len(open_source(name, REQUEST).names) == REQUEST.scenes
        with pytest.raises(UserError, match="no usable focal stack"):
            open_source(f"./{name}", REQUEST)
    assert is_rgbd("rgbd") and not is_rgbd("./rgbd")


def test_lists_of_scenes_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "train_scenes.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert scene_list(tmp_path, "train") == {"one", "two"}
