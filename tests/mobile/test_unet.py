"""The rewritten UNet against diffusers' over configs: depths, widths, heads, kinds of levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from pocketfocus.mobile.conditioning import Conditioning, baked, run
from pocketfocus.mobile.unet import MobileUNet, mobile_unet
from pocketfocus.run.errors import UserError
from pocketfocus.run.metrics import psnr

Randomise = Callable[[nn.Module], nn.Module]
PLAIN, ATTENTIVE = "DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"
GATE_DB = 90.0
FRAMES = 3

CONFIGS: dict[str, dict[str, Any]] = {
    "SVD's levels": {
        "block_out_channels": (32, 64, 96, 96),
        "num_attention_heads": (1, 2, 3, 3),
        "down_block_types": (ATTENTIVE, ATTENTIVE, ATTENTIVE, PLAIN),
        "layers_per_block": 2,
    },
    "no attention but in the middle": {"down_block_types": (PLAIN, PLAIN), "layers_per_block": 1},
    "attention at the bottom": {"down_block_types": (PLAIN, ATTENTIVE), "num_attention_heads": 4},
    "another number of layers a level": {
        "down_block_types": (ATTENTIVE, PLAIN),
        "layers_per_block": (1, 2),
        "transformer_layers_per_block": (2, 1),
    },
    "one level": {"block_out_channels": (64,), "down_block_types": (ATTENTIVE,)},
    "no layers down": {
        "block_out_channels": (64,),
        "down_block_types": (PLAIN,),
        "layers_per_block": 0,
    },
    "odd channels in and out": {
        "down_block_types": (PLAIN, PLAIN),
        "in_channels": 12,
        "out_channels": 5,
    },
}


def their_unet(**options: Any) -> UNetSpatioTemporalConditionModel:
    down = options["down_block_types"]
    given = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "num_attention_heads": 2,
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 48,
        "cross_attention_dim": 24,
        "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(down)),
        **options,
    }
    torch.manual_seed(0)
    return UNetSpatioTemporalConditionModel(**given)


def compare(theirs: Any, ours: MobileUNet, x: Tensor, t: float, token: Tensor) -> tuple[Any, Any]:
    """Outputs [T,C,h,w] of both, and the biases of ours."""
    ids = torch.tensor([6.0, 0.0, 0.1])
    conditioning = Conditioning.of(ours, theirs.state_dict())
    biases = conditioning.step(torch.tensor(t), ids) | conditioning.photo(token)
    with torch.no_grad():
        expected = theirs(x[None], torch.tensor(t), token[None, None], ids[None]).sample[0]
    return (run(ours, biases, x), expected), biases


@pytest.mark.parametrize("name", CONFIGS)
def test_unet_is_diffusers(name: str, randomise: Randomise) -> None:
    theirs: Any = randomise(their_unet(**CONFIGS[name]))
    ours = mobile_unet(theirs.config, theirs.state_dict(), FRAMES)
    x = torch.randn(FRAMES, theirs.config.in_channels, 8, 16)
    (got, expected), biases = compare(theirs, ours, x, 0.7, torch.randn(24))
    assert got.shape == expected.shape
    assert psnr(got, expected) >= GATE_DB
    with torch.no_grad():
        assert torch.equal(baked(ours, biases)(x), got)


@pytest.mark.parametrize("t", [1.64, 0.0, -1.55])
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_every_step_and_embedding_has_its_biases(
    t: float, factor: float, randomise: Randomise
) -> None:
    """The gate holds at SVD's first, a middle and its last step, with and without a photo; another
    step's or photo's biases miss it."""
    theirs: Any = randomise(their_unet(down_block_types=(ATTENTIVE, PLAIN)))
    ours = mobile_unet(theirs.config, theirs.state_dict(), FRAMES)
    x, token = torch.randn(FRAMES, 8, 4, 6), torch.randn(24)
    (got, expected), biases = compare(theirs, ours, x, t, factor * token)
    assert psnr(got, expected) >= GATE_DB
    conditioning = Conditioning.of(ours, theirs.state_dict())
    wrong_step = biases | conditioning.step(torch.tensor(t + 0.3), torch.tensor([6.0, 0.0, 0.1]))
    wrong_photo = biases | conditioning.photo((1 - factor) * token)
    assert psnr(run(ours, wrong_step, x), expected) < GATE_DB
    assert psnr(run(ours, wrong_photo, x), expected) < GATE_DB


def test_weights_are_shared_but_for_what_folds_change() -> None:
    theirs = their_unet(down_block_types=(ATTENTIVE, PLAIN))
    tensors = theirs.state_dict()
    pointers = {t.untyped_storage().data_ptr() for t in tensors.values()}
    ours = mobile_unet(theirs.config, tensors, FRAMES)
    owned = {
        name
        for name, t in ours.state_dict().items()
        if t.untyped_storage().data_ptr() not in pointers
    }
    folded = ("temporal.conv2", "to_q.weight", "upsamplers.0.conv.weight", "positions", "share")
    assert owned and all(any(part in name for part in folded) for name in owned)
    left = baked(ours, {})
    assert left.conv_in.weight.data_ptr() == ours.conv_in.weight.data_ptr()


def test_a_foreign_block_is_named() -> None:
    theirs = their_unet(down_block_types=(PLAIN, PLAIN))
    config = {**theirs.config, "down_block_types": (PLAIN, "AttnDownBlock2D")}
    with pytest.raises(UserError, match="AttnDownBlock2D"):
        mobile_unet(type(theirs.config)(config), theirs.state_dict())


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (3, 7, 4, 4), (3, 8, 4, 5), (1, 3, 8, 4, 4)])
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    theirs = their_unet(down_block_types=(PLAIN, PLAIN))
    ours = mobile_unet(theirs.config, theirs.state_dict(), FRAMES)
    with pytest.raises(ValueError, match="multiples of 2"):
        ours(torch.zeros(shape))
