"""The prior of depth: what it takes and gives, and what joins the student of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pocketfocus.data.optics import one_hot
from pocketfocus.models.prior import MULTIPLE, InvertedResidual, Prior
from pocketfocus.models.student import RefocusStudent
from pocketfocus.run.constants import FRAMES
from tests.conftest import WITH_PRIOR, change_pictures

UNKNOWN = torch.zeros(1, FRAMES)


@pytest.mark.parametrize("size", [(MULTIPLE, 2 * MULTIPLE), (96, 64)])
def test_it_speaks_of_sixteenths(size: tuple[int, int]) -> None:
    height, width = size
    encoded = torch.randn(2, 12, height // 16, width // 16)
    said = Prior(12, 20)(torch.randn(2, 3, *size), encoded)
    assert said.shape == (2, 20, height // 16, width // 16)


def test_its_stem_sees_half_of_the_size() -> None:
    """One kernel of 6x6 pixels, made of one of 3x3, is that one after means of 2x2 pixels."""
    prior, photo = Prior(4, 8), torch.randn(1, 3, 64, 96)
    kernel = torch.randn(prior.stem.out_channels, 3, 3, 3)
    with torch.no_grad():
        enlarged = kernel.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4
        prior.stem.weight.copy_(enlarged)
        made = prior.stem(photo)
        half = F.conv2d(F.avg_pool2d(photo, 2), kernel, prior.stem.bias, stride=2, padding=1)
    assert torch.allclose(made, half, atol=1e-5)


@pytest.mark.parametrize(("stride", "out", "added"), [(1, 8, True), (2, 8, False), (1, 4, False)])
def test_a_block_adds_to_its_input_where_it_can(stride: int, out: int, added: bool) -> None:
    block = InvertedResidual(8, (3, stride, 6, out))
    nn.init.zeros_(block.project.weight)
    nn.init.zeros_(block.project.bias)  # type: ignore[arg-type]
    x = torch.randn(1, 8, 16, 16)
    made = block(x)
    assert made.shape == (1, out, 16 // stride, 16 // stride)
    assert torch.equal(made, x if added else torch.zeros_like(made))


def test_it_changes_pictures_only_once_it_has_joined() -> None:
    """Positions are its own from the start: they do not depend on what joins."""
    torch.manual_seed(0)
    student = RefocusStudent(**WITH_PRIOR).eval()
    change_pictures(student)
    photo = torch.rand(1, 3, 64, 96) * 2 - 1
    before = student.analyse(photo, UNKNOWN)
    network = student.network
    assert network.joined is not None and not network.joined.weight.any()
    nn.init.normal_(network.joined.weight)
    after = student.analyse(photo, UNKNOWN)
    assert torch.equal(before.positions, after.positions)
    assert not torch.equal(before.stack, after.stack)
    assert torch.equal(student.analyse(photo, one_hot(3)).stack[3], photo[0])


def test_a_prior_needs_a_third_level_and_larger_multiples() -> None:
    sizes = {"channels": (8, 16), "encoder": (1, 1), "decoder": (1,), "size": (64, 64)}
    assert RefocusStudent(**sizes).multiple == 8
    with pytest.raises(ValueError, match="a prior joins level 3, there are 2"):
        RefocusStudent(**sizes, prior=8)
    with pytest.raises(ValueError, match="multiples of 32"):
        RefocusStudent(prior=8, size=(64, 80))
