"""Crops of focal stacks."""

from __future__ import annotations

import numpy as np
import torch

from pocketfocus.distill.train.crops import Crops, current, middle, random_crops


def test_random_crops_are_seeded(ramps: np.ndarray) -> None:
    one, two = (random_crops(ramps, 3, 32, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (3, 9, 3, 32, 32)


def test_crops_follow_each_other_with_the_budget() -> None:
    crops = (Crops(0.5, 4, 64), Crops(1.0, 1, 96))
    assert [current(crops, spent).size for spent in (0.0, 0.49, 0.5, 1.0)] == [64, 64, 96, 96]


def test_the_middle_is_as_far_from_all_sides(ramps: np.ndarray) -> None:
    cut = middle(ramps[0], 32)
    assert torch.equal(cut, torch.from_numpy(ramps[0, ..., 16:48, 16:48]).float() / 127.5 - 1)
