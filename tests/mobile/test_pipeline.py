"""Gate "rewritten" of the design: the whole pipeline against the diffusers modules, 90 dB."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from pocketfocus.mobile import autoencoder, blocks, layers
from pocketfocus.mobile.pipeline import rewritten
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.sampling import Sampling
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.metrics import psnr

GATE_DB = 90.0
GUIDED = Sampling(2, 1.5, 1.0)


def photo(height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def stack_from(reference: ReferencePipeline) -> Callable[[int], Tensor]:
    """stack_from(position): the reference's stack of `photo()`, made once."""
    return cache(lambda position: reference(photo(), position, GUIDED))


@pytest.mark.parametrize("position", range(FRAMES))
def test_stack_of_every_position(
    stack_from: Callable[[int], Tensor], mobile: ReferencePipeline, position: int
) -> None:
    expected = stack_from(position)
    assert psnr(mobile(photo(), position, GUIDED), expected) >= GATE_DB
    assert expected.std() > 0.05, "a stack with something in it"


def test_every_step_of_the_sampler(reference: ReferencePipeline, mobile: ReferencePipeline) -> None:
    """Every UNet evaluation of four guided steps, on photos that are not square."""
    image = photo(64, 128)
    noise = torch.randn(reference.latent_shape(image), generator=torch.Generator().manual_seed(2))
    seen = [evaluations(pipeline, image, noise) for pipeline in (reference, mobile)]
    assert len(seen[0]) == len(seen[1]) == 2 * 4
    for expected, got in zip(*seen, strict=True):
        peak = float(expected.max() - expected.min())
        assert psnr(got, expected, peak) >= GATE_DB


def evaluations(pipeline: ReferencePipeline, image: Tensor, noise: Tensor) -> list[Tensor]:
    """What `denoise` returns, call by call."""
    outputs: list[Tensor] = []
    original = pipeline.denoise

    def recorded(*arguments: Tensor) -> Tensor:
        outputs.append(original(*arguments))
        return outputs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "denoise", recorded)
        pipeline.sample(image, 5, noise, Sampling(4))
    return outputs


def test_autoencoder_alone(reference: ReferencePipeline, mobile: ReferencePipeline) -> None:
    image = photo(128, 64)
    assert psnr(mobile.encode(image), reference.encode(image)) >= GATE_DB
    latents = torch.randn(reference.latent_shape(image))
    assert psnr(mobile.decode(latents), reference.decode(latents)) >= GATE_DB


def test_the_shipped_reference_in_its_own_way() -> None:
    shipped = load_reference()
    ours, theirs = (pipeline(photo(), 2) for pipeline in (rewritten(shipped), shipped))
    assert psnr(ours, theirs) >= GATE_DB


@pytest.mark.parametrize(
    ("stacks", "tokens", "return_dict"), [(2, 1, False), (1, 2, False), (1, 1, True)]
)
def test_what_the_rewrite_does_not_do_is_refused(
    mobile: ReferencePipeline, stacks: int, tokens: int, return_dict: bool
) -> None:
    config = mobile.unet.config
    sample = torch.zeros(stacks, FRAMES, config.in_channels, 8, 8)
    embedding = torch.zeros(1, tokens, config.cross_attention_dim)
    with pytest.raises(ValueError, match="one stack"):
        mobile.unet(sample, torch.tensor(0.0), embedding, torch.zeros(1, 3), return_dict)
    with pytest.raises(ValueError, match="one stack"):
        mobile.vae.decode(torch.zeros(4, 4, 2, 2), num_frames=2)


right = (layers.to_columns, layers.to_frames, layers.Attention.split)


def frames_and_pixels(patch: pytest.MonkeyPatch) -> None:
    """Temporal convolutions run along the pixels."""
    patch.setattr(blocks, "to_columns", lambda x: right[0](x).transpose(2, 3))
    patch.setattr(blocks, "to_frames", lambda x, h, w: right[1](x.transpose(2, 3), h, w))


def frames_and_pixels_of_the_last_layer(patch: pytest.MonkeyPatch) -> None:
    """Only the decoder's last temporal convolution does."""
    patch.setattr(autoencoder, "to_columns", lambda x: right[0](x).transpose(2, 3))
    patch.setattr(autoencoder, "to_frames", lambda x, h, w: right[1](x.transpose(2, 3), h, w))


def height_and_width(patch: pytest.MonkeyPatch) -> None:
    """Temporal branches come back with rows as columns."""
    patch.setattr(blocks, "to_frames", lambda x, h, w: right[1](x, w, h).transpose(2, 3))


def frames_and_channels(patch: pytest.MonkeyPatch) -> None:
    """Frames are read as channels: a reshape where a permutation belongs."""
    patch.setattr(blocks, "to_columns", lambda x: x.reshape(1, x.shape[1], x.shape[0], -1))


def frames_and_tokens(patch: pytest.MonkeyPatch) -> None:
    """Temporal attention runs within frames."""
    forward = blocks.TemporalTransformer.forward
    patch.setattr(
        blocks.TemporalTransformer,
        "forward",
        lambda self, x: forward(self, x.permute(1, 0, 2)).permute(1, 0, 2),
    )


def heads_and_features(patch: pytest.MonkeyPatch) -> None:
    """Heads take every second feature."""

    def split(self: layers.Attention, x: Tensor) -> Tensor:
        features = x.reshape(*x.shape[:2], -1, self.heads).transpose(2, 3)
        return right[2](self, features.reshape(x.shape))

    patch.setattr(layers.Attention, "split", split)


SWAPS: list[Callable[[pytest.MonkeyPatch], None]] = [
    frames_and_pixels,
    frames_and_pixels_of_the_last_layer,
    height_and_width,
    frames_and_channels,
    frames_and_tokens,
]


@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.__name__)
def test_the_gate_fails_where_two_axes_are_swapped(
    swap: Callable[[pytest.MonkeyPatch], None],
    stack_from: Callable[[int], Tensor],
    mobile: ReferencePipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a square photo, where no shape would tell."""
    expected = stack_from(3)
    swap(monkeypatch)
    assert psnr(mobile(photo(), 3, GUIDED), expected) < GATE_DB


def test_the_gate_fails_where_heads_and_features_are_swapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In an attention of two heads, which the smallest reference has not."""
    torch.manual_seed(0)
    x: Any = torch.randn(3, 7, 8)
    attention = layers.Attention(8, heads=2)
    with torch.no_grad():
        expected = attention(x)
        heads_and_features(monkeypatch)
        assert psnr(attention(x), expected) < GATE_DB
