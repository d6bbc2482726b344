"""torch.export takes the rewritten networks, and finds no operator that phones lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from diffusers.models.resnet import TemporalResnetBlock
from torch import Tensor, nn
from torch.export import ExportedProgram

from pocketfocus.mobile.conditioning import baked
from pocketfocus.models.reference import ReferencePipeline, added_time_ids
from pocketfocus.run.metrics import psnr

RANK = 4
GATE_DB = 90.0
FORBIDDEN = (
    "conv3d",
    "expand",
    "group_norm",
    "layer_norm",
    "scaled_dot_product",
    "_safe_softmax",
    "upsample",
    "repeat",
    "where",
)


one_reference = pytest.mark.parametrize("reference", [False], ids=["absolute"], indirect=True)


def values(program: ExportedProgram) -> Iterator[Tensor]:
    """Every tensor in a graph, weights and inputs too."""
    for node in program.graph.nodes:
        found = node.meta.get("val")
        for value in found if isinstance(found, list | tuple) else (found,):
            if isinstance(value, Tensor):
                yield value


def operators_of(program: ExportedProgram) -> Counter[str]:
    """How often each operator is called."""
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def check(network: nn.Module, x: Tensor) -> tuple[int, Counter[str]]:
    """Capture, compare, and look at the graph both as captured and in core operators: the highest
    rank, and the operators of the latter."""
    captured = torch.export.export(network, (x,))
    with torch.no_grad():
        assert psnr(captured.module()(x), network(x)) >= GATE_DB
    operators: Counter[str] = Counter()
    ranks = []
    for program in (captured, captured.run_decompositions()):
        operators = operators_of(program)
        ranks += [value.ndim for value in values(program)]
        refused = [name for name in operators if any(word in name for word in FORBIDDEN)]
        assert not refused
    return max(ranks), operators


@pytest.fixture
def denoiser(mobile: ReferencePipeline) -> nn.Module:
    """The UNet of one step and photo."""
    conditioning, ids = mobile.unet.conditioning, added_time_ids(1, torch.zeros(1))[0]
    biases = conditioning.step(torch.tensor(1.6), ids)
    biases |= conditioning.photo(torch.randn(mobile.unet.config.cross_attention_dim))
    return baked(mobile.unet.network, biases)


@one_reference
def test_denoiser(denoiser: nn.Module, mobile: ReferencePipeline) -> None:
    rank, operators = check(denoiser, torch.randn(9, mobile.unet.config.in_channels, 4, 8))
    assert rank == RANK
    assert not [name for name in operators if "sin" in name or "cos" in name], "no embedding left"


@one_reference
def test_decoder(mobile: ReferencePipeline) -> None:
    rank, _ = check(mobile.vae.decoder, torch.randn(8, mobile.vae.config.latent_channels, 2, 4))
    assert rank == RANK


@one_reference
def test_encoder(mobile: ReferencePipeline) -> None:
    rank, _ = check(mobile.vae.encoder, torch.randn(1, 3, 16, 32))
    assert rank == RANK


def test_the_check_finds_what_diffusers_has() -> None:
    """A temporal residual block that is not rewritten: rank 5, Conv3d and native norms."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = TemporalResnetBlock(32, temb_channels=None)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x, None)

    captured = torch.export.export(Block().eval(), (torch.randn(1, 32, 3, 4, 4),))
    assert max(value.ndim for value in values(captured)) == 5
    found = operators_of(captured)
    assert {word for word in FORBIDDEN if any(word in name for name in found)} == {
        "conv3d",
        "group_norm",
    }
