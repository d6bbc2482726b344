"""Layers rounded in float32, against plain arithmetic."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pocketfocus.quantize.fake import (
    Ranges,
    Rounded,
    by_pixel,
    dynamic,
    observe,
    round_weight,
    static,
    symmetric,
)
from pocketfocus.quantize.recipes import Scheme
from pocketfocus.quantize.toolchains.executorch import grid

INT8 = Scheme(8, "affine", "channel", "static")


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([8, 4]),
    st.sampled_from(["tensor", "channel", 4, 5]),
    st.booleans(),
)
def test_weights_are_few_levels_within_half_a_step(
    seed: int, bits: int, granularity: int | str, transposed: bool
) -> None:
    weight = torch.randn(6, 6, 3, 3, generator=torch.Generator().manual_seed(seed))
    found = round_weight(weight, Scheme(bits, "affine", granularity), transposed, symmetric)
    assert found.shape == weight.shape
    first = (found.transpose(0, 1) if transposed else found).reshape(6, -1)
    truth = (weight.transpose(0, 1) if transposed else weight).reshape(6, -1)
    size = {"tensor": truth.numel(), "channel": 54}.get(str(granularity), granularity)
    assert isinstance(size, int)
    for row, true in zip(first, truth, strict=True) if size <= 54 else [(first, truth)]:
        for group, origin in zip(
            row.reshape(-1).split(size), true.reshape(-1).split(size), strict=True
        ):
            step = origin.abs().max() / (2 ** (bits - 1) - 1)
            assert (group - origin).abs().max() <= 0.5001 * step
            levels = group / step
            assert torch.allclose(levels, levels.round(), atol=1e-3)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 8])
def test_weights_are_rounded_to_the_integers_of_their_bits(
    granularity: str | int, transposed: bool
) -> None:
    """Counted: a group has at most 16 values at 4 bits, an odd group size is filled up."""
    weight = torch.randn(6, 10, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = round_weight(weight, Scheme(4, "affine", granularity), transposed, grid)
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


def test_float16_and_palettes() -> None:
    weight = torch.randn(4, 4)
    assert torch.equal(round_weight(weight, Scheme(16), False, symmetric), weight.half().float())
    assert torch.equal(round_weight(weight, Scheme(32), False, symmetric), weight)
    with pytest.raises(ValueError, match="palettes"):
        round_weight(weight, Scheme(4, "palette", 8), False, symmetric)


def test_activations_are_256_levels() -> None:
    x = torch.linspace(-1, 3, 4001).reshape(1, -1)
    for found in (static(x, (-1.0, 3.0)), dynamic(x)):
        assert (found - x).abs().max() <= 4 / 255 * 0.51
        assert 200 < len(found.unique()) <= 256
    assert static(torch.tensor([9.0]), (-1.0, 3.0)).item() <= 3.02
    rows = torch.tensor([[0.0, 0.001], [0.0, 100.0]])
    assert dynamic(rows)[0, 1].item() == pytest.approx(0.001, rel=1e-3)


def test_a_rounded_network_leaves_the_network_as_it_is() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 2, 3))
    x = torch.rand(1, 3, 9, 9)
    ranges = observe(network, [(x,), (x * 2,)])
    assert list(ranges) == ["0", "2"]
    assert ranges["0"] == Ranges((float(x.min()), float(2 * x.max())), ranges["0"].output)
    with torch.no_grad():
        before = network(x)
        inside = Rounded(network, {"0": INT8}, ranges, symmetric)(x)
        coarse = Scheme(4, "affine", 9, "dynamic")
        coarsely = Rounded(network, {"0": coarse}, ranges, symmetric)(x)
        assert torch.equal(network(x), before)
        with pytest.raises(ValueError, match="palettes"):  # after the first layer is rounded
            Rounded(network, {"0": INT8, "2": Scheme(4, "palette", 8)}, ranges, symmetric)(x)
        assert torch.equal(network(x), before)
    fine, rough = (inside - before).abs().mean(), (coarsely - before).abs().mean()
    assert 0 < fine < rough < before.abs().mean()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 8])
def test_the_gradient_passes_straight_through(granularity: int | str, transposed: bool) -> None:
    weight = torch.randn(6, 10, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    round_weight(weight, Scheme(4, "affine", granularity), transposed, symmetric).sum().backward()
    assert weight.grad is not None and float(weight.grad.mean()) > 0.9


def test_a_convolutions_rows_are_the_channels_of_its_pixels() -> None:
    x = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    x[:, :, 1] *= 100  # one row of the picture must not coarsen another
    made = by_pixel(nn.Conv2d(6, 2, 1), dynamic)(x)
    for b, y, z in itertools.product(range(2), range(3), range(4)):
        torch.testing.assert_close(made[b, :, y, z], dynamic(x[b, :, y, z][None])[0])
    assert by_pixel(nn.Linear(4, 2), dynamic) is dynamic
