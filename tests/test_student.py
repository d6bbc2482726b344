"""The student's two halves: weights from the network, and what optics makes of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pocketfocus.errors import UserError
from pocketfocus.optics import FRAMES, blurred, disc_kernel, one_hot
from pocketfocus.student import DARKEST, SCALE, Defocus, RefocusStudent, build_student

RADII = (0.5, 1.8, 3.0)


@pytest.fixture(scope="module")
def student() -> RefocusStudent:
    torch.manual_seed(0)
    made = RefocusStudent(channels=(8, 16), blocks=(1, 1), radii=RADII, size=(32, 32)).eval()
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


def test_changes_are_those_of_a_disc_in_linear_light() -> None:
    photo = photos()
    for radius, change in zip(RADII, Defocus(RADII)(photo), strict=True):
        light = ((photo + 1) / 2).square() + DARKEST
        expected = 2 * blurred(light, radius).sqrt() - 1
        torch.testing.assert_close(photo + change, expected)


def test_plain_areas_do_not_change() -> None:
    changes = Defocus(RADII)(torch.full((1, 3, 32, 32), 0.3))
    assert all(change.abs().max() < 1e-3 for change in changes)  # DARKEST is what is left


def test_weights_are_spread_bilinearly_disc_by_disc(student: RefocusStudent) -> None:
    generator = torch.Generator().manual_seed(2)
    photo = photos() / 4  # nothing gets clamped
    changes = [torch.randn(1, 3, 32, 32, generator=generator) / 20 for _ in RADII]
    weights = torch.randn(1, len(RADII) * FRAMES, 8, 8, generator=generator)
    made = student.compose(photo, weights, changes)
    spread = F.interpolate(weights, scale_factor=SCALE, mode="bilinear")
    by_disc = spread.reshape(len(RADII), FRAMES, 1, 32, 32)
    expected = photo + torch.einsum("ktchw,kbdhw->tdhw", by_disc, torch.stack(changes))
    torch.testing.assert_close(made, expected.clamp(-1, 1))


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
        made.network(*(tensor.to("meta") for tensor in inputs))
    share = height * width / (640 * 896)
    teacher = share**2 * (50 * TEACHER_GFLOPS["unet"] + TEACHER_GFLOPS["decoder"]) * 1e9
    discs = sum(
        2 * 3 * height * width * disc_kernel(radius).numel() for radius in made.config["radii"]
    )
    assert counter.get_total_flops() + discs < teacher / 600
    linear = sum(m.weight.numel() for m in made.modules() if isinstance(m, nn.Linear))
    rest = sum(p.numel() for p in made.parameters()) - linear
    assert linear / 2 + rest < 150e6  # bytes: 4 bits in linear layers, 8 in convolutions


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(UserError, match="tiny, phone"):
        build_student("huge")
