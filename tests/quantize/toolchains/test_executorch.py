"""What is done to a student before XNNPACK sees it, against plain arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pocketfocus.quantize.layers import capture
from pocketfocus.quantize.recipes import Scheme
from pocketfocus.quantize.toolchains.executorch import (
    Half,
    PerPixel,
    Rows,
    choose,
    group_linears,
    int8,
)


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


@pytest.mark.parametrize("bias", [True, False])
def test_a_1x1_convolution_is_a_linear_layer_of_every_pixel(bias: bool) -> None:
    convolution, x = nn.Conv2d(5, 7, 1, bias=bias), torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(PerPixel(convolution)(x), convolution(x))


def test_half_keeps_float32_outside_and_the_original() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1 / 3))

        def forward(self, photo: Tensor, position: Tensor) -> Tensor:
            assert photo.dtype == position.dtype == torch.float16
            return photo * self.weight + position

    module = Add()
    (out,) = Half(module)(torch.ones(2), torch.zeros(2))
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.full((2,), 1 / 3).half().float())
    assert module.weight.dtype == torch.float32


def test_four_bit_groups_against_plain_rounding() -> None:
    """Symmetric 4 bits: every group of 32 weights within one step of its own scale."""
    torch.manual_seed(0)
    model = Mlp()
    weight, small = model.up.weight.detach().clone(), model.down.weight.detach().clone()
    group_linears(model, {"up": 32})
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


INT4, INT8 = Scheme(4, "affine", 32, "dynamic"), Scheme(8, "affine", "channel", "static")
DYNAMIC = replace(INT8, activations="dynamic")


@pytest.mark.parametrize(
    ("asked", "layer", "taken", "why"),
    [
        (INT4, nn.Linear(64, 8), INT4, ""),
        (INT4, nn.Linear(48, 8), INT8, "48 inputs are no whole groups of 32"),
        (
            INT4,
            nn.Conv2d(32, 8, 3),
            INT8,
            "4-bit weights in linear layers and 1x1 convolutions only",
        ),
        (INT4, nn.Conv2d(32, 8, 1, stride=2), INT8, "1x1 convolutions only"),
        (INT4, nn.Conv2d(64, 64, 1, groups=2), INT8, "1x1 convolutions only"),
        (INT4, nn.Conv2d(48, 8, 1), INT8, "48 inputs are no whole groups of 32"),
        (INT4, nn.Conv2d(32, 8, 1), INT4, ""),
        (INT8, nn.Conv2d(32, 8, 1), INT8, ""),
        (DYNAMIC, nn.Linear(4, 4), DYNAMIC, ""),
        (DYNAMIC, nn.Conv2d(4, 8, 1), DYNAMIC, ""),
        (DYNAMIC, nn.Conv2d(4, 8, 3), INT8, "1x1 convolutions only"),
        (DYNAMIC, nn.Conv2d(4, 8, 1, groups=2), INT8, "1x1 convolutions only"),
        (Scheme(8, "affine", "channel"), nn.Linear(4, 4), INT8, "with int8 activations only"),
        (Scheme(4, "affine", "channel", "dynamic"), nn.Linear(32, 8), INT4, "all its 32 weights"),
        (Scheme(4, "palette", 8), nn.Linear(32, 8), INT4, "no palettes"),
        (Scheme(16), nn.Conv2d(3, 3, 1), Scheme(32), "as float32"),
        (Scheme(16), nn.Linear(3, 3), Scheme(16), ""),
    ],
)
def test_what_xnnpack_takes(asked: Scheme, layer: nn.Module, taken: Scheme, why: str) -> None:
    choice = choose(asked, layer)
    assert choice.scheme == taken
    assert why in choice.why
    assert bool(choice.why) == (asked != taken)


class Composing(nn.Module):
    """Layers with an addition between, and a tail with an addition and a fixed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 3, 3, padding=1)
        self.register_buffer("kernel", torch.full((3, 1, 3, 3), 1 / 9))

    def forward(self, photo: Tensor) -> Tensor:
        x = self.first(photo)
        change = self.last(x + x.flip(1))
        blurred = nn.functional.conv2d(photo, self.get_buffer("kernel"), padding=1, groups=3)
        return photo + change * blurred


def test_only_layers_and_what_leads_to_them_are_quantized() -> None:
    torch.manual_seed(0)
    model, inputs = Composing().eval(), [(torch.rand(1, 3, 8, 8),)] * 2
    schemes = dict.fromkeys(("first", "last"), INT8)
    graph = int8(capture(model, inputs), inputs, schemes, between=True).graph
    adds = [n for n in graph.nodes if str(n.target) == "aten.add.Tensor"]
    convolutions = [n for n in graph.nodes if "conv2d" in str(n.target)]

    def is_rounded(node: torch.fx.Node) -> bool:
        return all("dequantize" in str(a.target) for a in node.all_input_nodes[:2])

    assert [is_rounded(n) for n in convolutions] == [True, True, False]
    assert [is_rounded(n) for n in adds] == [True, False]
    assert not any(is_rounded(n) for n in graph.nodes if str(n.target) == "aten.mul.Tensor")


def test_no_batch_norm_is_looked_for_where_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their patterns took XNNPACK's quantizer two seconds a file."""
    name = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils"
    traced: list[object] = []
    monkeypatch.setattr(f"{name}._get_aten_graph_module_for_pattern", traced.append)
    inputs = [(torch.rand(1, 8, 4, 4),)]
    captured = capture(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), inputs)
    graph = int8(captured, inputs, {"0": Scheme(8, "affine", "channel", "static")}, True)
    assert "dequantize_per_channel" in graph.code and not traced
