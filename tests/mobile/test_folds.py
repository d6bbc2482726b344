"""Each fold against the diffusers layers that it replaces, over random configs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import AlphaBlender, ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pocketfocus.mobile.folds import (
    fold_attention_scale,
    fold_blend,
    fold_conv3d,
    fold_cross_attention,
    fold_frame_positions,
    fold_mode,
    fold_residual_blend,
    fold_time_embedding,
    fold_unshuffle,
    fold_upsample,
    sinusoid,
    two_layers,
)

few = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**31)
heads = st.integers(1, 4)
sizes = st.integers(1, 9)
widths = st.sampled_from([8, 16, 24])


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@few
@given(seeds, heads, widths, sizes, sizes)
def test_cross_attention_over_one_token_is_a_constant(
    seed: int, head_count: int, head_size: int, batch: int, length: int
) -> None:
    torch.manual_seed(seed)
    channels, features = head_count * head_size, 12
    theirs = Attention(
        channels, cross_attention_dim=features, heads=head_count, dim_head=head_size
    ).eval()
    token = torch.randn(features)
    with torch.no_grad():
        expected = theirs(
            10 * torch.randn(batch, length, channels), token.expand(batch, 1, features)
        )
        out = theirs.to_out[0]
        constant = fold_cross_attention(token, theirs.to_v.weight, out.weight, out.bias)
        unconditional = fold_cross_attention(0 * token, theirs.to_v.weight, out.weight, out.bias)
    close(constant.expand_as(expected), expected)
    assert torch.equal(unconditional, out.bias)


@few
@given(seeds, st.integers(1, 64), st.floats(-2, 2, allow_nan=False))
def test_sinusoid(seed: int, half: int, scale: float) -> None:
    values = scale * torch.randn(5, generator=torch.Generator().manual_seed(seed))
    close(sinusoid(values, 2 * half), Timesteps(2 * half, True, 0)(values))


@few
@given(seeds, st.sampled_from([32, 64]), st.sampled_from([32, 96]), st.sampled_from([16, 48]))
def test_time_embedding_at_a_fixed_step_is_a_bias(
    seed: int, channels: int, out: int, width: int
) -> None:
    """Against a whole ResnetBlock2D without an embedding, whose first bias is the fold."""
    torch.manual_seed(seed)
    theirs = ResnetBlock2D(in_channels=channels, out_channels=out, temb_channels=width).eval()
    mlp = TimestepEmbedding(channels, width)
    embed = Timesteps(channels, True, 0)
    x, t = torch.randn(2, channels, 4, 6), torch.randn(1)
    with torch.no_grad():
        embedding = mlp(embed(t))
        expected = theirs(x, embedding.expand(2, width))
        first, second = mlp.linear_1, mlp.linear_2
        ours = two_layers(
            sinusoid(t, channels), first.weight, first.bias, second.weight, second.bias
        )[0]
        projection, theirs.time_emb_proj = theirs.time_emb_proj, None
        theirs.conv1.bias.copy_(
            fold_time_embedding(ours, projection.weight, projection.bias, theirs.conv1.bias)
        )
        close(theirs(x, None), expected)


@few
@given(seeds, st.integers(1, 25), st.sampled_from([8, 32, 64]))
def test_frame_positions_are_constants(seed: int, frames: int, channels: int) -> None:
    torch.manual_seed(seed)
    theirs = TimestepEmbedding(channels, 4 * channels, out_dim=channels).eval()
    with torch.no_grad():
        expected = theirs(Timesteps(channels, True, 0)(torch.arange(frames)))
        first, second = theirs.linear_1, theirs.linear_2
        weights = (first.weight, first.bias, second.weight, second.bias)
        close(fold_frame_positions(frames, *weights), expected)


@few
@given(seeds, st.booleans(), st.floats(-9, 9, allow_nan=False), st.integers(1, 3), sizes)
def test_alpha_blender_is_a_scalar(
    seed: int, switched: bool, mix: float, batch: int, frames: int
) -> None:
    """The UNet's kind and the decoder's, on residual blocks' and on transformers' shapes."""
    torch.manual_seed(seed)
    strategy = "learned" if switched else "learned_with_images"
    theirs = AlphaBlender(mix, strategy, switch_spatial_to_temporal_mix=switched)
    indicator = torch.zeros(batch, frames)
    spatial, temporal = torch.randn(2, batch, 3, frames, 2, 5)
    with torch.no_grad():
        share = fold_blend(theirs.mix_factor, switched)
        expected = theirs(spatial, temporal, indicator)
    assert share.shape == () and 0 < share < 1
    close(spatial + share * (temporal - spatial), expected)
    if not switched:
        tokens = torch.randn(2, batch * frames, 7, 3)
        with torch.no_grad():
            expected = theirs(tokens[0], tokens[1], indicator)
        close(tokens[0] + share * (tokens[1] - tokens[0]), expected)


@few
@given(seeds, st.floats(0, 1, allow_nan=False), st.integers(1, 6), st.integers(1, 6))
def test_blend_of_a_residual_branch_is_in_its_last_weights(
    seed: int, share: float, channels: int, frames: int
) -> None:
    torch.manual_seed(seed)
    last = nn.Conv2d(4, channels, (3, 1), padding=(1, 0)).requires_grad_(False)
    spatial, hidden = torch.randn(1, channels, frames, 5), torch.randn(1, 4, frames, 5)
    expected = (1 - share) * spatial + share * (spatial + last(hidden))
    assert last.bias is not None
    weight, bias = fold_residual_blend(last.weight, last.bias, torch.tensor(share))
    close(spatial + F.conv2d(hidden, weight, bias, padding=(1, 0)), expected)


@few
@given(seeds, st.integers(1, 6), st.integers(1, 3), sizes, sizes)
def test_upsampling_and_convolution_are_one_transposed_convolution(
    seed: int, channels: int, batch: int, height: int, width: int
) -> None:
    torch.manual_seed(seed)
    theirs = Upsample2D(channels, use_conv=True, out_channels=channels + 1)
    x = torch.randn(batch, channels, height, width)
    with torch.no_grad():
        weight = fold_upsample(theirs.conv.weight)
        ours = F.conv_transpose2d(x, weight, theirs.conv.bias, stride=2, padding=1)
        assert weight.shape == (channels, channels + 1, 4, 4)
        close(ours, theirs(x))


@few
@given(seeds, st.integers(1, 5), st.integers(1, 5), sizes, sizes, sizes)
def test_temporal_convolution_is_two_dimensional(
    seed: int, channels: int, out: int, frames: int, height: int, width: int
) -> None:
    torch.manual_seed(seed)
    theirs = nn.Conv3d(channels, out, (3, 1, 1), padding=(1, 0, 0)).requires_grad_(False)
    x = torch.randn(2, channels, frames, height, width)
    weight = fold_conv3d(theirs.weight)
    ours = F.conv2d(x.flatten(3), weight, theirs.bias, padding=(1, 0))
    close(ours.reshape(theirs(x).shape), theirs(x))
    assert weight.data_ptr() == theirs.weight.data_ptr()


@few
@given(seeds, st.integers(1, 3), st.integers(1, 4), sizes, sizes)
def test_unshuffled_pixels_are_seen_by_a_larger_kernel(
    seed: int, channels: int, patch: int, height: int, width: int
) -> None:
    torch.manual_seed(seed)
    theirs = nn.Conv2d(channels * patch**2, 3, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, channels, height * patch, width * patch)
    weight = fold_unshuffle(theirs.weight, patch)
    ours = F.conv2d(x, weight, theirs.bias, stride=patch, padding=patch)
    close(ours, theirs(F.pixel_unshuffle(x, patch)))


@few
@given(seeds, heads, sizes, sizes)
def test_attention_scale_is_in_the_query_weights(
    seed: int, head_count: int, head_size: int, length: int
) -> None:
    torch.manual_seed(seed)
    channels = head_count * head_size
    to_q = nn.Linear(channels, channels).requires_grad_(False)
    x, key = torch.randn(2, length, channels)
    ours = F.linear(
        x, fold_attention_scale(to_q.weight, head_size), fold_attention_scale(to_q.bias, head_size)
    )
    close(ours @ key.T, to_q(x) @ key.T / math.sqrt(head_size))


def test_attention_scale_of_64_features_is_exact() -> None:
    weight = torch.randn(64, 64)
    assert torch.equal(fold_attention_scale(weight, 64) * 8, weight)


@few
@given(seeds, st.integers(1, 6), st.integers(1, 6), sizes)
def test_mode_needs_one_convolution(seed: int, channels: int, latents: int, size: int) -> None:
    torch.manual_seed(seed)
    last = nn.Conv2d(channels, 2 * latents, 3, padding=1).requires_grad_(False)
    quant = nn.Conv2d(2 * latents, 2 * latents, 1).requires_grad_(False)
    x = torch.randn(2, channels, size, size)
    assert last.bias is not None and quant.bias is not None
    weight, bias = fold_mode(last.weight, last.bias, quant.weight, quant.bias)
    close(F.conv2d(x, weight, bias, padding=1), quant(last(x)).chunk(2, dim=1)[0])
