"""Focus accuracy of stacks whose focus is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.benchmarks.focus_accuracy import FocusAccuracy, focus_accuracy, patches

FRAMES, POSITIONS = 9, range(9)


def stack(left: int, right: int) -> Tensor:
    """Noise whose left half is sharp in one frame, and its right half in another; blurred by as
    much as a frame is away."""
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def half(focus: int) -> Tensor:
        frames = []
        for frame in range(FRAMES):
            side = 1 + 2 * abs(frame - focus)
            frames.append(F.avg_pool2d(noise, side, 1, side // 2, count_include_pad=False))
        return torch.cat(frames)

    return torch.cat([half(left)[..., :32], half(right)[..., 32:]], -1)


@pytest.mark.parametrize(
    ("made", "share", "error"),
    [((2, 6), 1.0, 0.0), ((3, 6), 0.5, 0.5), ((2, 2), 0.5, 2.0), ((6, 2), 0.0, 4.0)],
)
def test_halves_of_known_focus(made: tuple[int, int], share: float, error: float) -> None:
    found = focus_accuracy(stack(*made), patches(stack(2, 6)), POSITIONS)
    assert found == pytest.approx(FocusAccuracy(share, error))


def test_frames_that_lie_apart_are_off_by_their_positions() -> None:
    """Of frames at 0, 4 and 8 the neighbour is off by four positions, the last by eight."""
    true, made = stack(0, 4)[::4], stack(8, 0)[::4]
    assert focus_accuracy(made, patches(true), (0, 4, 8)) == pytest.approx(FocusAccuracy(0.0, 6.0))


def test_plain_stacks_have_no_focus() -> None:
    plain = torch.full((FRAMES, 3, 64, 64), 0.3)
    noisy = plain + torch.randn(plain.shape, generator=torch.Generator().manual_seed(1)) / 255
    assert focus_accuracy(stack(2, 6), patches(plain), POSITIONS) is None
    assert focus_accuracy(stack(2, 6), patches(noisy), POSITIONS) is None


def test_a_photo_repeated_has_the_focus_of_chance() -> None:
    """All frames alike: the first is called the sharpest."""
    repeated = stack(4, 4)[:1].expand(FRAMES, -1, -1, -1)
    assert focus_accuracy(repeated, patches(stack(2, 6)), POSITIONS) == pytest.approx(
        FocusAccuracy(0.0, 4.0)
    )
