"""The student: copies before it has learned, discs of defocus where its weights say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from pocketfocus.optics import FRAMES, disc_kernel
from pocketfocus.student import RefocusStudent

SMALL = {"channels": (8, 16), "blocks": (1, 1), "size": 32}
RADII = (1.0, 3.0)


@pytest.fixture
def photos() -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_untrained_it_copies_the_photo(photos: torch.Tensor) -> None:
    stack = RefocusStudent(**SMALL)(photos, torch.eye(FRAMES)[[0, 5]])
    assert torch.equal(
        stack.reshape(2, FRAMES, 3, 32, 48), photos[:, None].expand(-1, 9, -1, -1, -1)
    )


def test_frames_are_the_photo_under_the_disc_that_the_weights_name(photos: torch.Tensor) -> None:
    student = RefocusStudent(**SMALL, radii=RADII)
    frame, disc = 7, 1
    with torch.no_grad():
        student.head.bias[disc * FRAMES + frame] = 1.0
        stack = student(photos[:1], torch.eye(FRAMES)[3:4])
    light = ((photos[0].numpy() + 1) / 2) ** 2
    kernel = disc_kernel(RADII[disc]).numpy()
    truth = 2 * np.sqrt([convolve(channel, kernel) for channel in light]) - 1
    inner = slice(len(kernel) // 2, -(len(kernel) // 2))
    assert np.abs(stack[frame].numpy() - truth)[:, inner, inner].max() < 1e-5
    assert (stack[frame] - photos[0]).abs().max() > 0.1
    assert torch.equal(stack[frame - 1], photos[0])


def test_the_photos_own_frame_is_the_photo_whatever_it_learned(photos: torch.Tensor) -> None:
    student = RefocusStudent(**SMALL)
    torch.nn.init.normal_(student.head.weight)
    stacks = student(photos, torch.eye(FRAMES)[[2, 8]]).reshape(2, FRAMES, 3, 32, 48)
    assert torch.equal(stacks[0, 2], photos[0]) and torch.equal(stacks[1, 8], photos[1])
    assert not torch.equal(stacks[0, 3], photos[0])


def test_a_batch_is_its_photos_one_by_one(photos: torch.Tensor) -> None:
    student = RefocusStudent(**SMALL).eval()
    torch.nn.init.normal_(student.head.weight)
    positions = torch.eye(FRAMES)[[1, 6]]
    both = student(photos, positions)
    single = torch.cat([student(photos[n : n + 1], positions[n : n + 1]) for n in (0, 1)])
    torch.testing.assert_close(both, single, atol=1e-5, rtol=0)


def test_discs_are_not_trained() -> None:
    student = RefocusStudent(**SMALL)
    assert not any(p.requires_grad for p in student.defocus.parameters())
    assert all(p.requires_grad for n, p in student.named_parameters() if "defocus" not in n)
