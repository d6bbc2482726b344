"""Quantization-aware distillation, held against torchao's own quantized layers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pocketfocus.distill.qat import Rounded, round_weight, rounded, schemes_of
from pocketfocus.errors import UserError
from pocketfocus.optics import FRAMES
from pocketfocus.quantize.calibration import calibration
from pocketfocus.quantize.executorch import group_linears, linear_inputs
from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import RECIPES, Scheme
from pocketfocus.student import RefocusStudent, load_student

GROUP = Scheme(4, "affine", 8, "dynamic")


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
        plain, real = student(*given), quantized(student, four_bit)(*given)
        found = Rounded(student, four_bit, {})(*given)
    error, loss = (found - real).abs().mean(), (plain - real).abs().mean()
    assert loss > 1e-3 and error < 0.02 * loss
    torch.testing.assert_close(student(*given), plain)  # the student itself stays as it was


def test_learning_through_the_rounding_recovers_what_it_costs(
    student: RefocusStudent, four_bit: dict[str, Scheme]
) -> None:
    """Against the stacks of the student in fp32, on photos that were not learned from."""

    def lost(model: nn.Module) -> float:
        with torch.no_grad():
            return float((quantized(model, four_bit)(*unseen) - truth).square().mean())

    unseen = inputs(2, seed=99)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        truth = teacher(*unseen)
    before = lost(student)
    network, rate, steps = Rounded(student, four_bit, {}), 3e-4, 40
    optimizer = torch.optim.Adam(student.parameters(), rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        given = inputs(2, seed=step)
        with torch.no_grad():
            wanted = teacher(*given)
        loss = (network(*given) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert lost(student) < 0.8 * before


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 8])
def test_weights_are_rounded_to_the_integers_of_their_bits(
    granularity: str | int, transposed: bool
) -> None:
    """Counted: a group has at most 16 values at 4 bits, an odd group size is filled up."""
    weight = torch.randn(6, 10, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = round_weight(weight, Scheme(4, "affine", granularity), transposed)
    assert found.shape == weight.shape
    rows = (found.transpose(0, 1) if transposed else found).flatten(1)
    groups = {"tensor": [rows.flatten()], "channel": list(rows)}.get(
        str(granularity), [g for row in rows for g in row.split(8)]
    )
    assert all(len(group.detach().round(decimals=5).unique()) <= 16 for group in groups)
    step = max(float(weight.detach().abs().max()) / 7.5, 1e-9)
    assert 0 < float((found - weight).detach().abs().max()) <= 0.51 * step
    found.sum().backward()
    assert weight.grad is not None and float(weight.grad.mean()) > 0.9  # straight through


def test_the_coarsest_of_what_targets_take_is_learned_with(student: RefocusStudent) -> None:
    schemes = schemes_of(RECIPES["int4"], student)
    assert set(schemes) == set(layers_of(student))
    assert {scheme.bits for scheme in schemes.values()} == {4}
    assert {s.activations for s in schemes_of(RECIPES["int8"], student).values()} == {"static"}


def test_fixed_ranges_come_from_real_photos(student: RefocusStudent) -> None:
    network = rounded(student, RECIPES["int8"], calibration((64, 64), inputs=9))
    assert set(network.ranges) == set(layers_of(student))
    with torch.no_grad():
        photo, place = inputs(1, seed=0)
        error = (network(photo, place) - student(photo, place)).abs().mean()
    assert 0 < error < 0.1


def test_a_recipe_without_integers_is_refused(student: RefocusStudent) -> None:
    with pytest.raises(UserError, match=r"fp32 rounds no layer to integers.*choose int8"):
        schemes_of(RECIPES["fp32"], student)
