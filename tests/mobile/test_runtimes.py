"""Blocks of every kind in the toolchains: XNNPACK takes all of it, and Core ML at rank 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.resnet import SpatioTemporalResBlock
from torch import Tensor, nn

from pocketfocus.export.coreml.mil.program import load_program
from pocketfocus.export.executorch import write as executorch
from pocketfocus.export.quiet import quiet
from pocketfocus.mobile.autoencoder import FrameAttention
from pocketfocus.mobile.blocks import ResBlock, Transformer
from pocketfocus.mobile.layers import Downsample, Upsample
from pocketfocus.run.metrics import psnr

FRAMES, CHANNELS, HEIGHT, WIDTH = 3, 32, 4, 6
FILE_DB = 80.0
MIL_DB = {"FLOAT32": 120.0, "FLOAT16": 60.0}


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    """A stage of each kind, small, with random weights."""
    torch.manual_seed(0)
    made = nn.Sequential(
        ResBlock((CHANNELS, 2 * CHANNELS), 32, (1e-6, 1e-5)),
        Downsample(2 * CHANNELS, centred=False),
        Transformer(2 * CHANNELS, heads=2, layers=1, frames=FRAMES),
        FrameAttention(2 * CHANNELS, groups=8),
        Upsample(2 * CHANNELS),
    )
    for tensor in (*made.parameters(), *made.buffers()):
        nn.init.normal_(tensor, std=0.1)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(FRAMES, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def lowered(network: nn.Module, x: Tensor) -> Any:
    """A network given to XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    captured = torch.export.export(network, (x,))
    return to_edge_transform_and_lower(captured, partitioner=[XnnpackPartitioner()])


@pytest.mark.skipif(executorch.cannot_run() is not None, reason="no ExecuTorch runtime")
def test_xnnpack_takes_every_operator_in_one_call(network: nn.Module, x: Tensor) -> None:
    with quiet():
        edge = lowered(network, x)
        found = executorch.delegated(edge.exported_program().graph_module)
        buffer = edge.to_executorch().buffer
    assert (found.calls, found.not_delegated, found.share) == (1, (), 1.0)

    from executorch.extension.pybindings import _portable_lib

    got = _portable_lib._load_for_executorch_from_buffer(buffer).forward([x])[0]
    expected = network(x)
    assert psnr(got, expected, float(expected.max() - expected.min())) >= FILE_DB


@pytest.mark.skipif(executorch.cannot_write() is not None, reason="no ExecuTorch")
def test_xnnpack_stops_at_what_is_not_rewritten() -> None:
    """diffusers' own residual block, for which this package exists."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = SpatioTemporalResBlock(32, 32, temb_channels=None)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x, image_only_indicator=torch.zeros(1, FRAMES))

    with quiet(), pytest.raises(RuntimeError, match="pass through"):
        lowered(Block().eval(), torch.randn(FRAMES, 32, 2, 2))


@pytest.fixture(scope="module", params=["FLOAT16", "FLOAT32"])
def program(request: pytest.FixtureRequest, network: nn.Module, x: Tensor) -> tuple[str, Any]:
    """A precision, and the network as Core ML's program in it."""
    ct = pytest.importorskip("coremltools")
    with quiet():
        model = ct.convert(
            torch.export.export(network, (x,)).run_decompositions({}),
            inputs=[ct.TensorType(name="x", shape=tuple(x.shape))],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision[request.param],
            convert_to="mlprogram",
            skip_model_load=True,
        )
    return request.param, model


def test_core_ml_converts_at_rank_4_for_ios_17(program: tuple[str, Any]) -> None:
    operations = [
        operation
        for function in program[1].get_spec().mlProgram.functions.values()
        for block in function.block_specializations.values()
        for operation in block.operations
    ]
    assert {"conv", "conv_transpose", "linear", "matmul", "softmax"} <= {o.type for o in operations}
    outputs = [output for operation in operations for output in operation.outputs]
    assert max(len(output.type.tensorType.dimensions) for output in outputs) == 4


def test_core_mls_program_is_the_network(
    program: tuple[str, Any], network: nn.Module, x: Tensor, tmp_path: Path
) -> None:
    """By the MIL check of the saved package."""
    precision, model = program
    with quiet():
        model.save(str(tmp_path / "blocks.mlpackage"))
    (found,) = load_program(tmp_path / "blocks.mlpackage")({"x": x}).values()
    truth = network(x)
    assert psnr(found, truth, float(truth.max() - truth.min())) >= MIL_DB[precision]
