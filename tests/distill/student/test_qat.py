"""Quantization-aware distillation, held against torchao's own quantized layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pocketfocus.data.optics import one_hot
from pocketfocus.distill.student.qat import Files, rounded, schemes_of
from pocketfocus.distill.student.regression import Regression
from pocketfocus.models.loading import load_reference
from pocketfocus.models.student import RefocusStudent, load_student
from pocketfocus.quantize.calibration import calibration
from pocketfocus.quantize.fake import Rounded
from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import RECIPES, Scheme
from pocketfocus.quantize.toolchains.coreml import adapted
from pocketfocus.quantize.toolchains.executorch import grid, group_linears, linear_inputs
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError

GROUP = Scheme(4, "affine", 8, "dynamic")
FLOATS, PIXELS = {"network.detail", "network.gains"}, {"network.pixels"}


@pytest.fixture
def student(small_student: Path) -> RefocusStudent:
    return load_student(small_student)


@pytest.fixture
def four_bit(student: RefocusStudent) -> dict[str, Scheme]:
    """Every layer that XNNPACK takes at 4 bits, in groups of eight weights."""
    layers = layers_of(student).items()
    return {n: GROUP for n, m in layers if linear_inputs(m) and linear_inputs(m) % 8 == 0}


def inputs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    photos = torch.rand(count, 3, 64, 64, generator=generator) * 2 - 1
    return photos, torch.eye(FRAMES)[torch.arange(count) % FRAMES]


def quantized(student: nn.Module, schemes: dict[str, Scheme]) -> nn.Module:
    """As the exporter has it: torchao's integer layers."""
    model = copy.deepcopy(student).eval()
    group_linears(model, {name: scheme.granularity for name, scheme in schemes.items()})
    return model


def test_a_rounded_student_computes_what_torchaos_integer_layers_do(
    student: RefocusStudent, four_bit: dict[str, Scheme]
) -> None:
    given = inputs(1, seed=0)
    with torch.no_grad():
        plain, real = student.stack(*given), quantized(student, four_bit)(*given)[0]
        found = Rounded(student, four_bit, {}, grid)(*given)[0]
    error, loss = (found - real).abs().mean(), (plain - real).abs().mean()
    assert loss > 1e-3 and error < 0.02 * loss
    torch.testing.assert_close(student.stack(*given), plain)  # the student itself stays as it was


def test_learning_through_the_rounding_recovers_what_it_costs(
    student: RefocusStudent, four_bit: dict[str, Scheme]
) -> None:
    """Against the stacks of the student in fp32, on photos that were not learned from."""

    def lost(model: nn.Module) -> float:
        with torch.no_grad():
            return float((quantized(model, four_bit)(*unseen)[0] - truth).square().mean())

    unseen = inputs(2, seed=99)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        truth = teacher.stack(*unseen)
    before = lost(student)
    network, rate, steps = Rounded(student, four_bit, {}, grid), 3e-4, 40
    optimizer = torch.optim.Adam(student.parameters(), rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        given = inputs(2, seed=step)
        with torch.no_grad():
            wanted = teacher.stack(*given)
        loss = (network(*given)[0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert lost(student) < 0.8 * before


def test_each_photo_of_a_batch_goes_through_its_own_file() -> None:
    """A file marks its nine frames by adding its number; the photo's level is its place."""

    def numbered(number: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        marked = 100 * number
        return lambda photo, _: (photo.repeat_interleave(FRAMES, 0) + marked, photo + marked)

    files = Files((numbered(0), numbered(1), numbered(2)))
    photos = torch.arange(5.0)[:, None, None, None].expand(5, 3, 4, 4)
    for turn in ([2, 0, 2, 1, 0], [1, 1, 1, 1, 1], [2, 1, 0, 0, 2]):
        chosen = torch.tensor(turn)
        made = files(photos, torch.eye(FRAMES)[:5], chosen)
        wanted = photos + 100 * chosen[:, None, None, None]
        assert torch.equal(made[0], wanted.repeat_interleave(FRAMES, 0))
        assert torch.equal(made[1], wanted)


def test_samples_are_shared_out_among_the_files(
    student: RefocusStudent, small_reference: Path
) -> None:
    """By chance in training, by the seed where scored; none for a student that is not rounded."""
    trained = Regression(load_reference(str(small_reference)), student)
    images, generator = torch.zeros(1, FRAMES + 1, 3, 64, 64), torch.Generator().manual_seed(0)
    assert len(trained.noise(images, generator)) == 1  # whether the position is given
    trained.rounded = rounded(student, RECIPES["int4"], calibration((64, 64), inputs=1))
    drawn = torch.cat([trained.noise(images, generator)[1] for _ in range(200)])
    count = len(trained.rounded.files)
    assert 0.7 < int((drawn == 0).sum()) * count / 200 < 1.3 and set(drawn.tolist()) == {
        *range(count)
    }
    photo, _ = inputs(1, seed=0)
    with torch.no_grad():
        made = [trained.refocus(photo, 4, seed) for seed in range(4)]
        through = [file(photo, one_hot(4))[0] for file in trained.rounded.files]
    assert not torch.equal(*through[:2])
    for index, stack in enumerate(made):
        torch.testing.assert_close(stack, through[index % count])


def test_every_target_with_integers_is_learned_for(student: RefocusStudent) -> None:
    """But for palettes, which Core ML has where they are asked for."""
    schemes = schemes_of(RECIPES["int4"], student)
    assert {"executorch", "onnx", "coreml"} <= set(schemes)
    assert {scheme.bits for scheme in schemes["onnx"].values()} == {4, 8}
    assert {scheme.bits for scheme in schemes["executorch"].values()} == {4, 8}
    for target, table in schemes_of(RECIPES["int8"], student).items():
        floats = FLOATS | (set() if target == "executorch" else PIXELS)
        assert set(table) == set(layers_of(student)) - floats
        found = {name for name, scheme in table.items() if scheme.activations != "static"}
        assert found == PIXELS - floats
    palettes = adapted(RECIPES["int4"], {"form": "palettes"})
    found = set(schemes_of(palettes, student)["coreml"])  # Core ML leaves small weights as they are
    assert PIXELS <= found <= PIXELS | FLOATS


def test_fixed_ranges_come_from_real_photos(student: RefocusStudent) -> None:
    network = rounded(student, RECIPES["int8"], calibration((64, 64), inputs=9))
    for file in network.files:
        assert isinstance(file, Rounded) and set(file.ranges) == set(layers_of(student))
    with torch.no_grad():
        photo, place = inputs(2, seed=0)
        stack = network(photo, place, torch.arange(2))[0]
        error = (stack - student.stack(photo, place)).abs().mean()
    assert 0 < error < 0.1


def test_a_recipe_without_integers_is_refused(student: RefocusStudent) -> None:
    with pytest.raises(UserError, match=r"fp32 rounds no layer to integers.*choose int8"):
        schemes_of(RECIPES["fp32"], student)
