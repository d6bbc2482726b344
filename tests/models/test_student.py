"""The student's two halves: weights from the network, and what optics makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate1d
from torch.utils.flop_counter import FlopCounterMode

from pocketfocus.data.optics import one_hot
from pocketfocus.models.student import Bands, RefocusStudent, build_student
from pocketfocus.quantize.toolchains.executorch import linear_inputs
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError

BANDS = 4


@pytest.fixture(scope="module")
def student() -> RefocusStudent:
    torch.manual_seed(0)
    made = RefocusStudent(channels=(8, 16), blocks=(1, 1), bands=BANDS, size=(32, 32)).eval()
    torch.nn.init.normal_(made.network.head.weight, std=0.3)
    return made


def photos(count: int = 1, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, size, size, generator=generator) * 1.8 - 0.9


def test_the_photos_own_frame_is_the_photo(student: RefocusStudent) -> None:
    photo = photos()
    for position in range(FRAMES):
        stack = student(photo, one_hot(position))
        assert torch.equal(stack[position], photo[0])
        others = [n for n in range(FRAMES) if n != position]
        assert all((stack[n] - photo[0]).abs().max() > 0.01 for n in others)


def test_untrained_it_copies() -> None:
    photo = photos()
    stack = RefocusStudent(channels=(8,), blocks=(1,), size=(32, 32))(photo, one_hot(3))
    assert torch.equal(stack, photo.expand(FRAMES, -1, -1, -1))


def test_a_batch_is_its_photos_one_by_one(student: RefocusStudent) -> None:
    batch, positions = photos(3), torch.cat([one_hot(n) for n in (0, 4, 8)])
    together = student(batch, positions)
    for n in range(3):
        alone = student(batch[n : n + 1], positions[n : n + 1])
        torch.testing.assert_close(together[n * FRAMES : (n + 1) * FRAMES], alone)


def test_bands_are_what_a_blur_takes_away_at_every_size() -> None:
    """Against scipy, edges repeated."""
    photo = photos()
    image = photo[0].numpy()
    bands = Bands(BANDS)(photo)
    assert [band.shape[-1] for band in bands] == [32, 16, 8, 4]
    for band in bands:
        soft = image
        for axis in (1, 2):
            soft = correlate1d(soft, [0.25, 0.5, 0.25], axis, mode="nearest")
        np.testing.assert_allclose(band[0], image - soft, atol=1e-6)
        image = image.reshape(3, image.shape[1] // 2, 2, -1, 2).mean((2, 4))


def test_plain_areas_have_no_bands() -> None:
    bands = Bands(BANDS)(torch.full((1, 3, 32, 32), 0.3))
    assert all(band.abs().max() < 1e-6 for band in bands)


def test_gains_weigh_bands_and_colours_are_added(student: RefocusStudent) -> None:
    """Against one sum over bands, each gain enlarged as its band is, in float64."""
    generator = torch.Generator().manual_seed(2)
    photo = photos(2).double() / 4  # nothing gets clamped
    bands = [
        torch.randn(2, 3, 32 >> level, 32 >> level, generator=generator).double() / 20
        for level in range(BANDS)
    ]
    outputs = torch.randn(2, FRAMES * (BANDS + 3), 8, 8, generator=generator).double() / 4

    def larger(x: torch.Tensor, steps: int) -> torch.Tensor:
        for _ in range(steps):
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        return x

    gains = outputs[:, : FRAMES * BANDS].unflatten(1, (BANDS, FRAMES))
    colours = outputs[:, FRAMES * BANDS :].unflatten(1, (FRAMES, 3))
    expected = photo[:, None] + larger(colours.flatten(0, 1), 2).unflatten(0, (2, FRAMES))
    for level, band in enumerate(bands):
        size = 32 >> min(level, 2)
        gain = F.interpolate(gains[:, level], (size, size), mode="bilinear")
        if level > 2:
            band = F.interpolate(band, (size, size), mode="bilinear")
        change = gain[:, :, None] * band[:, None]
        expected = expected + larger(change.flatten(0, 1), min(level, 2)).unflatten(0, (2, FRAMES))
    made = student.compose(photo, outputs, bands)
    torch.testing.assert_close(made, expected.flatten(0, 1).clamp(-1, 1))


@pytest.mark.parametrize("activation", ["relu", "hardswish", "silu"])
@pytest.mark.parametrize("depthwise", [True, False])
def test_every_kind_of_block_learns(activation: str, depthwise: bool) -> None:
    torch.manual_seed(0)
    made = RefocusStudent((8,), (1,), 2, activation, depthwise, 3, (16, 16))
    loss = (made(photos(1, 16), one_hot(0)) - 0.2).square().mean()
    loss.backward()
    assert made.network.head.weight.grad is not None
    assert made.network.head.weight.grad.abs().max() > 0


def test_no_tensor_has_more_than_four_dimensions(student: RefocusStudent) -> None:
    program = torch.export.export(student, (photos(), one_hot(0)))
    ranks = [
        node.meta["val"].ndim
        for node in program.graph.nodes
        if isinstance(node.meta.get("val"), torch.Tensor)
    ]
    assert ranks and max(ranks) <= 4


TEACHER_GFLOPS = {  # of one evaluation of the published UNet, and of decoding nine frames
    "unet": 27_883,
    "decoder": 60_709,
}  # at 640x896, from tests/mobile/test_savings.py


def test_the_phone_preset_is_a_600th_of_its_teacher_and_small() -> None:
    """The teacher at the student's size, as if all of it were attention, which shrinks fastest."""
    made = build_student("phone").to("meta")
    height, width = made.photo_size
    inputs = (torch.empty(1, 3, height, width), torch.empty(1, 9))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(*(tensor.to("meta") for tensor in inputs))
    share = height * width / (640 * 896)
    teacher = share**2 * (50 * TEACHER_GFLOPS["unet"] + TEACHER_GFLOPS["decoder"]) * 1e9
    assert counter.get_total_flops() < teacher / 600
    linear = sum(m.weight.numel() for m in made.modules() if linear_inputs(m))
    rest = sum(p.numel() for p in made.parameters()) - linear
    assert linear / 2 + rest < 150e6  # bytes: 4 bits in linear layers, 8 in convolutions


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(UserError, match="tiny, phone"):
        build_student("huge")
