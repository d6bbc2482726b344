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
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)
from onnxruntime.quantization.quant_utils import quantize_data
from torch import Tensor, nn

from pocketfocus.quantize.layers import capture
from pocketfocus.quantize.recipes import Scheme
from pocketfocus.quantize.toolchains import TOOLCHAINS
from pocketfocus.quantize.toolchains.coreai import Blocks
from pocketfocus.quantize.toolchains.coreml import clipped
from pocketfocus.quantize.toolchains.executorch import group_linears, int8
from pocketfocus.quantize.toolchains.onnx import grid, in_groups, unpacking

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
    graph = int8(capture(nn.Sequential(layer), inputs), inputs, {"0": STATIC}, True)
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


def onnxruntime_products(rows: Tensor) -> Tensor:
    """The groups of `MatMulNBits`, by onnxruntime's rounding."""
    quantizer = DefaultWeightOnlyQuantizer(
        DefaultWeightOnlyQuantConfig(WIDTH, True, quant_format=QuantFormat.QDQ)
    )
    packed, scales, _ = quantizer.qbits_block_quant(np.ascontiguousarray(rows.numpy().T))
    pairs = np.frombuffer(packed.tobytes(), np.uint8)
    nibbles = np.stack([pairs & 15, pairs >> 4], -1).reshape(WIDTH, ROWS).astype(np.int8)
    signed = np.where(nibbles > 7, nibbles - 16, nibbles)
    return torch.from_numpy((signed * scales).T.astype(np.float32))


def onnxruntime_channels(rows: Tensor) -> Tensor:
    """Of its QDQ quantizer, which has a scale a channel."""
    found = []
    for row in rows.numpy():
        zero, scale, integers = quantize_data(row, onnx.TensorProto.INT8, symmetric=True)
        found.append((integers.astype(np.float32) - zero) * scale)
    return torch.from_numpy(np.stack(found))


def coremltools_rows(bits: int) -> Callable[[Tensor], Tensor]:
    """Of its linear quantizer, symmetric; at 4 bits of what is clipped before."""

    def rounded(rows: Tensor) -> Tensor:
        integers, scales, _ = quantize_weight(
            (clipped(rows) if bits == 4 else rows).numpy(),
            (1,),
            bits,
            True,
            "LINEAR_SYMMETRIC",
            np.dtype(np.int8),
        )
        return torch.from_numpy(integers * scales[:, None]).float()

    return rounded


def parametrized(bits: int) -> Callable[[Tensor], Tensor]:
    """The integers and scales that a Core AI asset keeps."""

    def rounded(rows: Tensor) -> Tensor:
        blocks = Blocks(rows, bits)
        (integers,) = blocks.right_inverse(rows)
        return integers * blocks.scale

    return rounded


STATIC = Scheme(8, "affine", "channel", "static")
WRITTEN = {
    ("executorch", Scheme(4, "affine", WIDTH, "dynamic")): torchao_groups,
    ("executorch", STATIC): torchao_channels,
    ("onnx", Scheme(4, "affine", WIDTH)): onnxruntime_groups,
    ("onnx", Scheme(4, "affine", WIDTH, "dynamic")): onnxruntime_products,
    ("onnx", STATIC): onnxruntime_channels,
    ("coreml", Scheme(4, "affine", WIDTH)): coremltools_rows(4),
    ("coreml", Scheme(8, "affine", "channel")): coremltools_rows(8),
    ("coreml", STATIC): torchao_channels,
    ("coreai", Scheme(4, "affine", WIDTH)): parametrized(4),
    ("coreai", Scheme(8, "affine", "channel")): parametrized(8),
    ("coreai", STATIC): torchao_channels,
}


def weights(largest: float = 1.0) -> Tensor:
    """Rows whose largest weight is negative, or positive; and one that has both."""
    rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    rows[0, :2] = torch.tensor([4.0, -4.0])
    return rows * largest / rows.abs().amax(1, keepdim=True)


@pytest.mark.parametrize("largest", [1.0, 0.02])
@pytest.mark.parametrize(("target", "scheme"), WRITTEN, ids=str)
def test_weights_lie_where_the_toolchain_puts_them(
    target: str, scheme: Scheme, largest: float
) -> None:
    rows = weights(largest)
    step = largest / 2 ** (scheme.bits - 1)
    written = WRITTEN[target, scheme](rows)
    found = TOOLCHAINS[target].grid(rows, scheme)
    assert (written - rows).abs().max() > 0.3 * step  # it does round
    off = (found - written).abs() > 0.02 * step
    assert off.float().mean() < 0.005  # one that lies in the middle may go either way
    assert not off[0, :2].any()


def test_the_targets_differ_at_4_bits() -> None:
    """But those of Apple's, which have one grid."""
    rows, scheme = weights(), Scheme(4, "affine", WIDTH)
    grids = {toolchain.grid for toolchain in TOOLCHAINS.values()}
    assert len(grids) == len(TOOLCHAINS) - 1
    for one, other in itertools.combinations(grids, 2):
        found = [grid(rows, scheme) for grid in (one, other)]
        moved = (found[0] - found[1]).norm() / (found[0] - rows).norm()
        assert moved > 0.3, (one, other)


@pytest.mark.parametrize(("target", "scheme"), WRITTEN, ids=str)
def test_the_gradient_passes_straight_through(target: str, scheme: Scheme) -> None:
    """But where a weight lies beyond the last integer, as an ONNX row's largest may."""
    rows = weights().requires_grad_()
    TOOLCHAINS[target].grid(rows, scheme).sum().backward()
    assert rows.grad is not None
    assert set(rows.grad.unique().tolist()) <= {0.0, 1.0} and rows.grad.mean() > 0.9


def test_rows_of_zeros_stay_so() -> None:
    for target, scheme in WRITTEN:
        assert not TOOLCHAINS[target].grid(torch.zeros(2, WIDTH), scheme).any()


def test_every_target_has_been_held_against_its_toolchain() -> None:
    assert {target for target, _ in WRITTEN} == set(TOOLCHAINS)


def test_a_convolution_loses_less_than_by_the_range_of_its_weights() -> None:
    torch.manual_seed(0)
    rows = torch.randn(256, WIDTH)
    best, whole = (
        (grid(rows, Scheme(4, "affine", WIDTH, activations)) - rows).square().mean().log10()
        for activations in ("float", "dynamic")
    )
    assert 10 * (whole - best) > 0.3  # dB


def test_the_last_group_is_of_what_is_left() -> None:
    matrix = torch.randn(WIDTH + 5, 3)
    packed, scales = in_groups(matrix, WIDTH)
    assert packed.shape == (WIDTH + 5, 3)
    assert scales.shape == (2, 3)
    found = packed * scales.repeat(WIDTH, 0)[: WIDTH + 5]
    assert np.abs(found - matrix.numpy()).max() <= 0.5 * np.abs(scales).max() * 3
