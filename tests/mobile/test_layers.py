"""Layers and blocks against torch's and diffusers' own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.models.attention import FeedForward as TheirFeedForward
from diffusers.models.attention_processor import Attention as TheirAttention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.upsampling import Upsample2D
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pocketfocus.mobile import layers
from pocketfocus.mobile.blocks import ResBlock
from pocketfocus.mobile.layers import (
    Attention,
    Downsample,
    FeedForward,
    GroupNorm,
    LayerNorm,
    Upsample,
    shuffled,
    standardise,
    to_columns,
    to_frames,
)
from pocketfocus.mobile.source import Network, Source, build, take
from pocketfocus.run.metrics import psnr

HALF_DB = 50.0

few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 6)
Randomise = Callable[[nn.Module], nn.Module]


def copied(make: Callable[[], Network], theirs: nn.Module) -> Network:
    """A rewritten layer with the weights of a diffusers layer."""
    return build(make, lambda made: take(made, Source(theirs.state_dict())))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@few
@given(seeds, st.sampled_from([1, 2, 4]), st.integers(1, 3), sizes, sizes)
def test_group_norm_of_frames_and_of_columns(
    seed: int, groups: int, frames: int, height: int, width: int
) -> None:
    torch.manual_seed(seed)
    theirs = nn.GroupNorm(groups, 8, eps=1e-5).requires_grad_(False)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = copied(lambda: GroupNorm(8, groups, 1e-5), theirs)
    x = 3 + torch.randn(frames, 8, height, width + 1)
    close(ours(x), theirs(x))
    video = x[None].transpose(1, 2)  # [1,C,T,H,W], as diffusers normalises over all frames
    expected = theirs(video).transpose(1, 2)[0]
    close(to_frames(ours(to_columns(x)), height, width + 1), expected)


@few
@given(seeds, st.integers(1, 9), sizes)
def test_layer_norm(seed: int, channels: int, length: int) -> None:
    torch.manual_seed(seed)
    theirs = nn.LayerNorm(channels).requires_grad_(False)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    x = 3 + torch.randn(2, length, channels)
    close(copied(lambda: LayerNorm(channels), theirs)(x), theirs(x))


@few
@given(seeds, st.sampled_from([1e-3, 0.1, 1.0, 300.0, 10_000.0]), st.booleans())
def test_norms_stay_within_float16(seed: int, scale: float, outlier: bool) -> None:
    """Activations of 10,000 have squares of 1e8 (float16 ends at 65,504), of 1e-3 none at all."""
    torch.manual_seed(seed)
    x = scale * (torch.randn(2, 3, 5, 40) + 0.5)
    if outlier:
        x[0, 0, 0, 0] = 5 * scale
    half = standardise(x.half(), 1e-6)
    assert half.isfinite().all()
    exact = torch.nn.functional.layer_norm(x.half().double(), (5, 40), eps=1e-6)
    assert psnr(half.double(), exact, float(exact.max() - exact.min())) >= HALF_DB
    close(standardise(x, 1e-6), torch.nn.functional.layer_norm(x, (5, 40), eps=1e-6))


def test_columns_are_frames_by_their_pixels() -> None:
    x = torch.randn(4, 3, 2, 5)
    columns = to_columns(x)
    assert columns.shape == (1, 3, 4, 10)
    assert columns[0, 2, 3, 1 * 5 + 4] == x[3, 2, 1, 4]
    assert torch.equal(to_frames(columns, 2, 5), x)


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), sizes, sizes)
def test_pixel_shuffle(frames: int, channels: int, patch: int, height: int, width: int) -> None:
    x = torch.randn(frames, channels * patch**2, height, width)
    assert torch.equal(shuffled(x, patch), nn.functional.pixel_shuffle(x, patch))


@few
@given(seeds, st.integers(1, 4), st.sampled_from([4, 8]), sizes, st.booleans())
def test_attention_whole_and_in_blocks(
    seed: int, heads: int, size: int, length: int, bias: bool
) -> None:
    torch.manual_seed(seed)
    channels = heads * size
    theirs = TheirAttention(channels, heads=heads, dim_head=size, bias=bias)
    theirs.eval().requires_grad_(False)
    ours = copied(lambda: Attention(channels, heads, bias), theirs)
    x = torch.randn(3, length, channels)
    close(ours(x), theirs(x))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "MOST_SCORES", 3 * heads * length * 2)  # two queries at once
        close(ours(x), theirs(x))


@few
@given(seeds, st.integers(1, 9), sizes)
def test_feed_forward(seed: int, channels: int, length: int) -> None:
    torch.manual_seed(seed)
    theirs = TheirFeedForward(channels, activation_fn="geglu").eval().requires_grad_(False)
    x = torch.randn(2, length, channels)
    close(copied(lambda: FeedForward(channels), theirs)(x), theirs(x))


@few
@given(seeds, st.integers(1, 5), sizes, sizes, st.booleans())
def test_up_and_downsampling(
    seed: int, channels: int, height: int, width: int, centred: bool
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, channels, 2 * height, 2 * width)
    down = Downsample2D(
        channels, use_conv=True, out_channels=channels, padding=int(centred), name="op"
    ).requires_grad_(False)
    close(copied(lambda: Downsample(channels, centred), down)(x), down(x))
    up = Upsample2D(channels, use_conv=True, out_channels=channels).requires_grad_(False)
    close(copied(lambda: Upsample(channels), up)(x), up(x))


@pytest.mark.parametrize("switched", [False, True])
@pytest.mark.parametrize("out", [32, 64])
@pytest.mark.parametrize("frames", [1, 4])
def test_residual_block_of_the_decoder(
    switched: bool, out: int, frames: int, randomise: Randomise
) -> None:
    theirs = randomise(
        SpatioTemporalResBlock(
            32,
            out,
            temb_channels=None,
            eps=1e-6,
            temporal_eps=1e-5,
            merge_factor=0.3,
            merge_strategy="learned" if switched else "learned_with_images",
            switch_spatial_to_temporal_mix=switched,
        )
    )
    ours = copied(lambda: ResBlock((32, out), 32, (1e-6, 1e-5), switched), theirs)
    x = torch.randn(frames, 32, 3, 5)
    close(ours(x), theirs(x, image_only_indicator=torch.zeros(1, frames)))


def test_weights_are_not_copied() -> None:
    theirs = nn.Linear(3, 4)
    ours = copied(lambda: nn.Linear(3, 4), theirs)
    assert ours.weight.data_ptr() == theirs.weight.data_ptr()
    assert not ours.weight.requires_grad
