"""The rewritten encoder and decoder against diffusers' and the compact autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn

from pocketfocus.mobile.autoencoder import MobileEncoder, mobile_autoencoder
from pocketfocus.models.autoencoder import CompactAutoencoder
from pocketfocus.run.errors import UserError
from pocketfocus.run.metrics import psnr

Randomise = Callable[[nn.Module], nn.Module]
DOWN = "DownEncoderBlock2D"
GATE_DB = 90.0

CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "SVD's": (AutoencoderKLTemporalDecoder, {"layers_per_block": 2}),
    "one layer": (AutoencoderKLTemporalDecoder, {"layers_per_block": 1, "latent_channels": 8}),
    "three layers": (AutoencoderKLTemporalDecoder, {"layers_per_block": 3}),
    "compact": (CompactAutoencoder, {"norm_num_groups": 4, "latent_channels": 12}),
    "compact, deeper": (CompactAutoencoder, {"norm_num_groups": 8, "layers_per_block": 2}),
}


def their_autoencoder(cls: type, **options: Any) -> Any:
    widths = (32, 32, 64)
    given = {"block_out_channels": widths, "down_block_types": (DOWN,) * len(widths), **options}
    torch.manual_seed(0)
    return cls(**given)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_autoencoder_is_diffusers(name: str, frames: int, randomise: Randomise) -> None:
    cls, options = CONFIGS[name]
    theirs: Any = randomise(their_autoencoder(cls, **options))
    ours = mobile_autoencoder(theirs.config, theirs.state_dict())
    photos = torch.rand(2, 3, 64, 96) * 2 - 1
    latents = torch.randn(frames, theirs.config.latent_channels, 4, 6)
    with torch.no_grad():
        mode = theirs.encode(photos).latent_dist.mode()
        decoded = theirs.decode(latents, num_frames=frames).sample
        assert psnr(ours.encoder(photos), mode) >= GATE_DB
        assert psnr(ours.decoder(latents), decoded) >= GATE_DB


def test_compact_weights_are_shared() -> None:
    theirs = their_autoencoder(CompactAutoencoder)
    ours = mobile_autoencoder(theirs.config, theirs.state_dict())
    for part, mine in (("encoder", ours.encoder), ("decoder", ours.decoder)):
        assert mine.shortcut is not None
        shortcut = getattr(theirs, f"{part}_shortcut")
        assert mine.shortcut.weight.data_ptr() == shortcut.weight.data_ptr()


def test_a_foreign_block_is_named() -> None:
    theirs = their_autoencoder(AutoencoderKLTemporalDecoder)
    config = {**theirs.config, "down_block_types": ("AttnDownEncoderBlock2D",) * 3}
    with pytest.raises(UserError, match="AttnDownEncoderBlock2D"):
        MobileEncoder(type(theirs.config)(config))
