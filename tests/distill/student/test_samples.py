"""What a student learns from: photos, flips, and what is held out."""

from __future__ import annotations

import numpy as np
import torch

from pocketfocus.data.stacks import StackCache
from pocketfocus.distill.student.samples import Sample, lit, sample_batch, split, true_batch
from tests.distill.conftest import cached


def test_true_batch_takes_the_photo_from_its_position(noise: np.ndarray) -> None:
    batch = true_batch([cached(noise)], 4, 32, torch.Generator().manual_seed(0))
    assert batch.images.shape == (4, 10, 3, 32, 32) and batch.images.dtype == torch.uint8
    for photo, position, stack in zip(batch.photos, batch.positions, batch.images, strict=True):
        assert torch.equal(photo, stack[position])
    floats = batch.floats()
    assert floats.photos.min() < -0.9 and floats.photos.max() > 0.9
    assert floats.nearness.shape == (4, 1, 8, 8) and floats.nearness.isnan().all()


def test_crops_and_their_map_of_dioptres_show_the_same_place() -> None:
    """A scene whose pixels are the number of their cell, all over."""
    cells = np.arange(12 * 16).reshape(12, 16)
    pixels = cells.repeat(4, 0).repeat(4, 1).astype(np.uint8)
    images = np.broadcast_to(pixels, (1, 10, 3, 48, 64)).copy()
    stacks = StackCache(images, (cells / 16)[None].astype(np.float16), ["a"])
    batch = true_batch([stacks], 16, 32, torch.Generator().manual_seed(0))
    mirrored, places = set(), set()
    for picture, nearness in zip(batch.images, batch.nearness, strict=True):
        (column,) = {int(n) for n in (nearness[0, :, 1:] - nearness[0, :, :-1]).sign().flatten()}
        mirrored.add(column)
        seen, known = picture[0, 0, ::4, ::4].flatten(), (nearness[0] * 320).flatten().round()
        places.add(int(known.min()))
        assert seen[known.argsort()].float().diff().min() >= 0  # brighter or darker, but in order
    assert mirrored == {-1, 1} and len(places) > 4


def test_another_light_multiplies_colours_and_clips() -> None:
    images = torch.tensor([100, 200], dtype=torch.uint8).expand(2, 3, 1, 2)
    found = lit(images, torch.tensor([1.0, 0.5, 2.0]))
    assert found[1, :, 0].tolist() == [[100, 200], [50, 100], [200, 255]]


def test_crops_come_from_all_sources_alike() -> None:
    one, five = (
        cached(np.full((count, 9, 3, side, side), level, np.uint8))
        for count, side, level in ((1, 32, 0), (5, 48, 200))
    )
    batch = true_batch([one, five], 300, 32, torch.Generator().manual_seed(0))
    dark = float((batch.images.flatten(1).amax(1) == 0).float().mean())
    assert 0.1 < dark < 0.24


def test_flips_keep_photo_and_stack_together() -> None:
    stack = torch.rand(9, 3, 8, 8) * 2 - 1
    sample = Sample(stack[3:4], 3, stack)
    batch = sample_batch([sample], 8, torch.Generator().manual_seed(0))
    for photo, position, made in zip(batch.photos, batch.positions, batch.images, strict=True):
        assert torch.equal(photo, made[position])
    assert batch.nearness.shape == (8, 1, 2, 2) and batch.nearness.isnan().all()
    assert len({photo.sum().item() for photo in batch.photos[..., :4]}) == 2


def test_stacks_that_are_scored_on_are_not_learned_from() -> None:
    numbered = np.arange(20, dtype=np.uint8)[:, None, None, None, None]
    many = np.broadcast_to(numbered, (20, 9, 3, 2, 2)).copy()
    material = split([], [cached(many)])
    held_out, (others,) = material.held_out, material.true_stacks
    assert not material.teacher_stacks
    scored = [round(float(sample.stack.mean() + 1) * 127.5) for sample in held_out]
    assert scored == [0, 1, 2, 3] and [int(stack.mean()) for stack in others.pixels] == [
        *range(4, 20)
    ]
    assert [sample.position for sample in held_out] == [0, 1, 2, 3]
    assert all(torch.equal(s.photo[0], s.stack[s.position]) for s in held_out)
    (alone,) = split([], [cached(many[:1])]).true_stacks
    assert len(alone) == 1
