"""Where a weight comes to lie in every target's files, against the toolchain that writes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from coremltools.optimize._utils import quantize_weight
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization.quant_utils import quantize_data
from torch import Tensor, nn

from pocketfocus.quantize.executorch import capture, group_linears, int8
from pocketfocus.quantize.onnx import unpacking
from pocketfocus.quantize.recipes import Scheme
from pocketfocus.quantize.sensitivity import TARGETS

ROWS, WIDTH = 24, 32


def torchao_groups(rows: Tensor) -> Tensor:
    """A linear layer of 4-bit groups: its weight is its answer to the unit vectors."""
    layer = nn.Linear(WIDTH, ROWS, bias=False)
    layer.weight.data.copy_(rows)
    model = nn.Sequential(layer)
    group_linears(model, {"0": WIDTH})
    with torch.no_grad():
        found: Tensor = model(torch.eye(WIDTH)).T
    return found


def torchao_channels(rows: Tensor) -> Tensor:
    """A static int8 convolution of PT2E, as its quantized graph unpacks it."""
    layer = nn.Conv2d(WIDTH, ROWS, 1, bias=False)
    layer.weight.data.copy_(rows[:, :, None, None])
    inputs = [(torch.rand(1, WIDTH, 4, 4),)]
    scheme = Scheme(8, "affine", "channel", "static")
    graph = int8(capture(nn.Sequential(layer), inputs), inputs, {"0": scheme}, True)
    (unpacked,) = (n for n in graph.graph.nodes if "dequantize_per_channel" in str(n.target))
    weight, scales = (
        getattr(graph, argument.target, None) if hasattr(argument, "target") else argument
        for argument in unpacked.args[:2]
    )
    assert isinstance(weight, Tensor) and isinstance(scales, Tensor)
    return weight.float().flatten(1) * scales.float()[:, None]


def onnxruntime_groups(rows: Tensor) -> Tensor:
    """The operators that unpack a convolution's weight, by ONNX's own evaluator."""
    weight = onnx.numpy_helper.from_array(rows.numpy()[:, :, None, None], "weight")
    nodes, constants = unpacking(helper.make_node("Conv", ["x", "weight"], ["y"]), weight, WIDTH)
    last = nodes[-1].output[0]
    value = helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, weight.dims)
    graph = helper.make_graph(nodes, "weight", [], [value], constants)
    (found,) = ReferenceEvaluator(helper.make_model(graph)).run(None, {})
    return torch.from_numpy(found).flatten(1)


def onnxruntime_channels(rows: Tensor) -> Tensor:
    """Of its QDQ quantizer, which has a scale a channel."""
    found = []
    for row in rows.numpy():
        zero, scale, integers = quantize_data(row, onnx.TensorProto.INT8, symmetric=True)
        found.append((integers.astype(np.float32) - zero) * scale)
    return torch.from_numpy(np.stack(found))


def coremltools_rows(bits: int) -> Callable[[Tensor], Tensor]:
    """Of its linear quantizer, symmetric."""

    def rounded(rows: Tensor) -> Tensor:
        integers, scales, _ = quantize_weight(
            rows.numpy(), (1,), bits, True, "LINEAR_SYMMETRIC", np.dtype(np.int8)
        )
        return torch.from_numpy(integers * scales[:, None]).float()

    return rounded


TOOLCHAINS = {
    ("executorch", 4): torchao_groups,
    ("executorch", 8): torchao_channels,
    ("onnx", 4): onnxruntime_groups,
    ("onnx", 8): onnxruntime_channels,
    ("coreml", 4): coremltools_rows(4),
    ("coreml", 8): coremltools_rows(8),
}


def weights() -> Tensor:
    """Rows whose largest weight is negative, positive, and both."""
    rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.1
    rows[0, :2] = torch.tensor([0.5, -0.5])
    return rows


@pytest.mark.parametrize(("target", "bits"), TOOLCHAINS, ids=lambda value: str(value))
def test_weights_lie_where_the_toolchain_puts_them(target: str, bits: int) -> None:
    rows = weights()
    step = rows.abs().amax(1, keepdim=True) / 2 ** (bits - 1)
    written = TOOLCHAINS[target, bits](rows)
    found = TARGETS[target].grid(rows, bits)
    assert (written - rows).abs().max() > 0.3 * step.max()  # it does round
    off = (found - written).abs() > 0.02 * step + 1e-7
    assert off.float().mean() < 0.005  # a weight in the middle may go either way


def test_the_targets_differ_at_4_bits() -> None:
    rows = weights()
    for one, other in itertools.combinations(TARGETS, 2):
        four = [TARGETS[target].grid(rows, 4) for target in (one, other)]
        eight = [TARGETS[target].grid(rows, 8) for target in (one, other)]
        torch.testing.assert_close(*eight)
        moved = (four[0] - four[1]).norm() / (four[0] - rows).norm()
        assert moved > 0.3, (one, other)


def test_rows_of_zeros_stay_so() -> None:
    for target, bits in itertools.product(TARGETS.values(), (4, 8)):
        assert not target.grid(torch.zeros(2, WIDTH), bits).any()


def test_every_target_has_been_held_against_its_toolchain() -> None:
    assert {target for target, _ in TOOLCHAINS} == set(TARGETS)
