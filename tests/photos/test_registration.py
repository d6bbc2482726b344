"""Registration against motions that are known, beside blur that grows from frame to frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pocketfocus.data.scenes import render_scene
from pocketfocus.photos.registration import farthest_px, motion, moved, registered
from pocketfocus.run.metrics import psnr
from tests.breathing import breathing

H, W = 192, 144
INNER = (..., slice(12, -12), slice(12, -12))
STEP = torch.tensor([0.003, -0.0015, 0.005, 0.0, 0.001, 0.005, -0.004])  # by focal position


@pytest.fixture(scope="module")
def still() -> Tensor:
    """A rendered stack, whose frames lie on each other."""
    return render_scene(3, (H, W))


@pytest.fixture(scope="module")
def moving(still: Tensor) -> Tensor:
    """The same, each frame moved by as many steps as it lies from the middle one."""
    return breathing(still, STEP)


def test_known_motion_is_found_and_undone(still: Tensor, moving: Tensor) -> None:
    before, after = (farthest_px(motion(frames), (H, W)) for frames in (moving, registered(moving)))
    true = farthest_px(4 * STEP[None], (H, W))
    assert true > 0.7 and before == pytest.approx(true, rel=0.15)
    assert after < 0.15 * true
    undone = registered(moving)
    for n in (0, 2, 6, 8):
        gain = psnr(undone[n][INNER], still[n][INNER]) - psnr(moving[n][INNER], still[n][INNER])
        assert gain > 3, n
    assert torch.equal(undone[4], moving[4])


def test_a_still_stack_stays_where_it_is(still: Tensor) -> None:
    """Blur that grows and light that changes are no motion."""
    assert farthest_px(motion(still), (H, W)) < 0.15
    brighter = torch.stack([frame * (1 - 0.02 * n) for n, frame in enumerate(still)])
    assert farthest_px(motion(brighter), (H, W)) < 0.2


def test_what_was_squeezed_is_undone_as_the_lens_saw_it(still: Tensor) -> None:
    """Distortion is round in what the lens saw, not in files that are half as wide."""
    numbers = torch.tensor([0, 0, 0, 0, 0, 0, -0.01])
    whole = moved(still[4], numbers)
    half = torch.nn.functional.interpolate(whole[None], (H, W // 2), mode="area")[0]
    first = torch.nn.functional.interpolate(still[4:5], (H, W // 2), mode="area")[0]
    alike = (psnr(moved(first, numbers, at), half) for at in (W / H, None))
    assert next(alike) > next(alike) + 6


def test_what_cannot_be_told_stays(still: Tensor) -> None:
    plain = torch.zeros(9, 3, 64, 64)
    assert torch.equal(registered(plain), plain)
    assert not motion(plain).any()
    unlike = torch.from_numpy(np.random.default_rng(0).random((3, 3, H, W), np.float32)) * 2 - 1
    assert farthest_px(motion(unlike), (H, W)) < 3
    assert torch.equal(moved(still[0], torch.zeros(7)), still[0])
    assert torch.allclose(moved(still[0], torch.full((7,), 1e-9)), still[0], atol=1e-5)
