"""What is done to a student before XNNPACK sees it, against plain arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pocketfocus.quantize.executorch import Half, Rows, group_linears


class Mlp(nn.Module):
    """One linear layer that splits into groups of 32, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 48)
        self.down = nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x))
        return y


def test_rows_is_the_linear_layer() -> None:
    linear, x = nn.Linear(5, 7), torch.randn(2, 3, 4, 5)
    assert Rows(linear)(x).shape == (2, 3, 4, 7)
    torch.testing.assert_close(Rows(linear)(x), linear(x))


def test_half_keeps_float32_outside_and_the_original() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1 / 3))

        def forward(self, photo: Tensor, position: Tensor) -> Tensor:
            assert photo.dtype == position.dtype == torch.float16
            return photo * self.weight + position

    module = Add()
    out = Half(module)(torch.ones(2), torch.zeros(2))
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.full((2,), 1 / 3).half().float())
    assert module.weight.dtype == torch.float32


def test_four_bit_groups_against_plain_rounding() -> None:
    """Symmetric 4 bits: every group of 32 weights within one step of its own scale."""
    torch.manual_seed(0)
    model = Mlp()
    weight, small = model.up.weight.detach().clone(), model.down.weight.detach().clone()
    assert group_linears(model, 32) == 1
    assert isinstance(model.up, Rows)
    assert torch.equal(model.down.weight, small)

    # columns of the identity read the weights back; int8 activations 0 and 1 are exact
    probe = torch.eye(64)
    with torch.no_grad():
        found = (model.up(probe) - model.up(torch.zeros(1, 64))).T
    groups, truth = found.reshape(48, 2, 32), weight.reshape(48, 2, 32)
    step = truth.abs().amax(-1, keepdim=True) / 7
    assert ((groups - truth).abs() <= step * 1.01).all()
    levels = [len(group.mul(1e4).round().unique()) for row in groups for group in row]
    assert max(levels) <= 16
    assert (groups - truth).abs().max() > 0


@pytest.mark.parametrize("group_size", [32, 64])
def test_layers_that_do_not_split_stay(group_size: int) -> None:
    model = nn.Sequential(nn.Linear(9, 32, bias=False), nn.Linear(48, 8))
    assert group_linears(model, group_size) == 0
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
