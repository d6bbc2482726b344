"""Procedural scenes: determinism, ranges, depth layout, the split of photos and seeds."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from pocketfocus.data.optics import NEAREST_DIOPTRES, Camera, Layer
from pocketfocus.data.scenes import (
    HELD_OUT_PHOTOS,
    JPEG_QUALITY,
    PHOTO_FILES,
    SENSOR_NOISE,
    TRAIN_PHOTOS,
    _foliage,
    _Plan,
    bundled_photos,
    held_out_photos,
    make_scene,
    render_scene,
    train_photos,
)
from pocketfocus.data.textures import shape

SIZE = (48, 64)
SEEDS = range(40)


def test_the_same_seed_is_the_same_scene_and_another_is_not() -> None:
    first, again, other = (render_scene(seed, SIZE) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert float((first - other).abs().mean()) > 0.05


def test_stacks_are_nine_frames_within_range_that_differ() -> None:
    for seed in range(4):
        stack = render_scene(seed, SIZE)
        assert stack.shape == (9, 3, *SIZE)
        assert stack.dtype == torch.float32
        assert float(stack.min()) >= -1
        assert float(stack.max()) <= 1
        assert float((stack[0] - stack[8]).abs().mean()) > 0.005


@pytest.mark.parametrize("seed", SEEDS)
def test_layers_are_physical(seed: int) -> None:
    layers = make_scene(seed, SIZE)
    assert float(layers[0].alpha.min()) == 1
    for layer in layers:
        assert bool(torch.isfinite(layer.rgb).all())
        assert float(layer.rgb.min()) >= 0
        assert 0 <= float(layer.alpha.min()) <= float(layer.alpha.max()) <= 1
        assert float(layer.dioptres.min()) >= 0
        assert float(layer.dioptres.max()) <= NEAREST_DIOPTRES


def test_most_scenes_have_something_near_and_something_far() -> None:
    near_and_far = shallow = 0
    for seed in SEEDS:
        layers = make_scene(seed, (32, 32))
        seen = [layer.dioptres[layer.alpha > 0.5] for layer in layers]
        depths = torch.cat(seen)
        near_and_far += int(float(depths.max()) >= 8 and float(depths.min()) <= 4)
        shallow += int(float(depths.max() - depths.min()) < 5)
    assert near_and_far >= len(SEEDS) / 2
    assert shallow >= 1


def test_sensor_noise_is_small_and_independent_between_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pocketfocus.data.scenes.through_jpeg", lambda frame, quality: frame)
    noisy = render_scene(3, SIZE)
    monkeypatch.setattr("pocketfocus.data.scenes.SENSOR_NOISE", 0.0)
    clean = render_scene(3, SIZE)
    grain = noisy - clean
    middle = (clean.abs() < 0.9).all(0)
    samples = grain[:, middle].numpy()
    rounding = 2 / 255 / 12**0.5
    wanted = np.hypot(2 * SENSOR_NOISE, rounding)
    assert samples.std() == pytest.approx(wanted, rel=0.15)
    assert abs(np.corrcoef(samples)[0, 1]) < 0.1


def test_frames_went_through_mild_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    qualities: set[int] = set()
    size = (96, 96)
    for seed in range(12):
        saved = render_scene(seed, size)
        calls = Mock(side_effect=lambda frame, quality: frame)
        with monkeypatch.context() as patch:
            patch.setattr("pocketfocus.data.scenes.through_jpeg", calls)
            raw = render_scene(seed, size)
        used = {call.args[1] for call in calls.call_args_list}
        assert len(used) == 1
        qualities |= used
        assert 28 < 10 * float(torch.log10(4 / ((saved - raw) ** 2).mean())) < 60
    assert min(qualities) >= JPEG_QUALITY[0]
    assert max(qualities) <= JPEG_QUALITY[1]
    assert len(qualities) > 3


def test_some_apertures_have_blades(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def render_stack(layers: list[Layer], camera: Camera) -> torch.Tensor:
        seen.append(camera.blades)
        return torch.zeros(9, 3, *SIZE)

    monkeypatch.setattr("pocketfocus.data.scenes.render_stack", render_stack)
    for seed in range(40):
        render_scene(seed, SIZE)
    assert set(seen) == {0, 5, 6, 7, 8}
    assert 6 <= sum(blades > 0 for blades in seen) <= 22


def test_a_leaf_ends_at_its_tips() -> None:
    v, u = np.mgrid[-2:2:401j, -2:2:401j]
    leaf = shape(np.random.default_rng(0), u, v, "leaf")
    assert (leaf[np.abs(v) > 1.02] > 0).all()
    assert 0.1 < (leaf < 0).mean() * 16 / 4 < 0.8


def test_foliage_is_many_small_leaves_at_many_depths() -> None:
    plan = _Plan(2.0, 16.0, 0.3, False)
    scenes = [_foliage(np.random.default_rng(seed), plan, 1.0) for seed in range(60)]
    leafy = [leaves for leaves in scenes if leaves]
    assert 10 <= len(leafy) <= 30
    assert min(len(leaves) for leaves in leafy) >= 24
    assert max(leaf.half_height for leaves in leafy for leaf in leaves) < 0.2
    assert np.median([np.ptp([leaf.dioptres for leaf in leaves]) for leaves in leafy]) > 5


def test_photos_change_a_scene() -> None:
    white = np.full((80, 80, 3), 255, np.uint8)
    assert any(
        not torch.equal(render_scene(seed, SIZE), render_scene(seed, SIZE, [white]))
        for seed in range(3)
    )


def test_bundled_photos_are_colour_and_split_without_overlap() -> None:
    photos = bundled_photos()
    assert set(photos) == set(PHOTO_FILES) == set(TRAIN_PHOTOS) | set(HELD_OUT_PHOTOS)
    assert not set(TRAIN_PHOTOS) & set(HELD_OUT_PHOTOS)
    for photo in photos.values():
        assert photo.dtype == np.uint8
        assert photo.shape[2] == 3
        assert min(photo.shape[:2]) >= 256
        assert np.ptp(photo.astype(int), axis=2).mean() > 5
    assert len(train_photos()) == len(TRAIN_PHOTOS)
    assert len(held_out_photos()) == len(HELD_OUT_PHOTOS)
