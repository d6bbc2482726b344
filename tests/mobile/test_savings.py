"""What the folds save of the published model, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pocketfocus.mobile.autoencoder import MobileDecoder, MobileEncoder
from pocketfocus.mobile.unet import MobileUNet

FRAMES, HEIGHT, WIDTH = 9, 80, 112  # latents of 640x896 pixels
Counts = dict[str, float]


def on_meta(make: Callable[[], Any]) -> Any:
    """A network without memory; diffusers puts its mix factors on the CPU all the same."""
    with torch.device("meta"):
        return make().to("meta")


@pytest.fixture(scope="module")
def unet() -> Any:
    """SVD's UNet is the default of its class."""
    return on_meta(UNetSpatioTemporalConditionModel)


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    """SVD's autoencoder."""
    options = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
    return on_meta(lambda: AutoencoderKLTemporalDecoder(**options))


def zeros(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def millions(network: nn.Module, *words: str) -> float:
    """Parameters whose names hold one of the words; all without."""
    named = network.named_parameters()
    return sum(p.numel() for n, p in named if not words or any(w in n for w in words)) / 1e6


def counted(run: Callable[[], object]) -> FlopCounterMode:
    """The FLOPs of a run by module."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter


def gflops(counter: FlopCounterMode, ends: str = "") -> float:
    """Of the modules whose names end so; of all without."""
    if not ends:
        return counter.get_total_flops() / 1e9
    counts = counter.get_flop_counts().items()
    return sum(sum(found.values()) for name, found in counts if name.endswith(ends)) / 1e9


def test_parameters_of_the_unet(unet: Any) -> None:
    ours = on_meta(lambda: MobileUNet(unet.config))
    assert millions(unet) == pytest.approx(1524.6, abs=0.05)
    saved = {
        "cross-attention": millions(unet, "attn2")
        + sum(p.numel() for n, p in unet.named_parameters() if "former" in n and ".norm2." in n)
        / 1e6,
        "time": millions(unet, "time_emb_proj")
        + sum(millions(part) for part in (unet.time_embedding, unet.add_embedding)),
        "positions": millions(unet, "time_pos_embed"),
        "upsampling": -7 / 9 * 9 * (1280**2 + 1280**2 + 640**2) / 1e6,
    }
    rounded = {name: round(value, 1) for name, value in saved.items()}
    assert rounded == {
        "cross-attention": 100.8,
        "time": 56.3,
        "positions": 99.2,
        "upsampling": -25.8,
    }
    assert millions(unet) - millions(ours) == pytest.approx(sum(saved.values()), abs=0.001)
    biases = sum(
        part.conv1.bias.numel()
        for name, part in ours.named_modules()
        if name.endswith((".spatial", ".temporal"))
    )
    assert biases == 40_320


def test_flops_of_the_unet(unet: Any) -> None:
    ours = on_meta(lambda: MobileUNet(unet.config))
    x = zeros(FRAMES, 8, HEIGHT, WIDTH)
    theirs = counted(lambda: unet(x[None], zeros(1), zeros(1, 1, 1024), zeros(1, 3)))
    mine = counted(lambda: ours(x))
    saved = {
        "cross-attention": gflops(theirs, ".attn2"),
        "time": gflops(theirs, ".time_emb_proj"),
        "positions": gflops(theirs, ".time_pos_embed"),
        "upsampling": gflops(theirs, ".upsamplers.0") - gflops(mine, ".upsamplers.0"),
    }
    assert round(gflops(theirs)) == 27_883
    assert {name: round(value, 1) for name, value in saved.items()} == {
        "cross-attention": 1113.2,
        "time": 0.9,
        "positions": 1.8,
        "upsampling": 743.2,
    }
    assert gflops(theirs) - gflops(mine) == pytest.approx(sum(saved.values()), abs=0.05)


def test_the_autoencoder(autoencoder: Any) -> None:
    config = autoencoder.config
    decoder = on_meta(lambda: MobileDecoder(config))
    encoder = on_meta(lambda: MobileEncoder(config))
    assert millions(decoder) - millions(autoencoder.decoder) == pytest.approx(4.13, abs=0.01)
    theirs = millions(autoencoder.encoder) + millions(autoencoder.quant_conv)
    assert theirs - millions(encoder) == pytest.approx(0.0185, abs=1e-3)
    z, photo = zeros(FRAMES, 4, HEIGHT, WIDTH), zeros(1, 3, 8 * HEIGHT, 8 * WIDTH)
    before = gflops(counted(lambda: autoencoder.decode(z, num_frames=FRAMES)))
    assert round(before) == 60_709
    assert before - gflops(counted(lambda: decoder(z))) == pytest.approx(7610, abs=1)
    full = counted(lambda: autoencoder.encode(photo))
    assert gflops(full) - gflops(counted(lambda: encoder(photo))) == pytest.approx(0.33, abs=0.01)
