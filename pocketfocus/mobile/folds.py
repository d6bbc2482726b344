"""The exact folds: parts of Stable Video Diffusion that are constants or other weights on a phone.

Each is a pure function of tensors, proven against the diffusers layers in test_folds.py. What a
fold saves is given for the published model, in parameters (of 1524.6 M in the UNet and 63.6 M in
the decoder) and in FLOPs, 2 a multiply-add, of 9 frames of 640x896 pixels (27.9 TFLOPs for a UNet
evaluation, attention's products included, and 60.7 for decoding); test_savings.py counts them.

Legend: C channels in and O out of a layer, D width of the time embedding, E of the CLIP embedding,
T frames, N any number.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PERIOD = 10000


def fold_cross_attention(
    embedding: Tensor, value_weight: Tensor, out_weight: Tensor, out_bias: Tensor
) -> Tensor:
    """Cross-attention over a single token as the constant it adds, [C].

    softmax over one key is 1 whatever the query: the output is out(value(token)) at every place.
    Added to the bias of the self-attention's own output projection it costs nothing. A zero
    embedding, the unconditional pass, leaves `out_bias`.

    Saves 100.8 M parameters (queries, keys, values, outputs and the norms before them) and 1113
    GFLOPs.

    Args:
        embedding: the token [E].
        value_weight: [C, E], without a bias.
        out_weight: [C, C].
        out_bias: [C].
    """
    return F.linear(F.linear(embedding, value_weight), out_weight, out_bias)


def sinusoid(values: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding [N, channels] of numbers [N], cosines first (Ho et al. 2020, as SVD has
    it): cos and sin of value / 10000^(i / (channels / 2))."""
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def two_layers(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """linear, SiLU, linear: the MLP that follows every sinusoidal embedding, [N, C] -> [N, O]."""
    return F.linear(F.silu(F.linear(x, weight1, bias1)), weight2, bias2)


def fold_time_embedding(
    embedding: Tensor, weight: Tensor, bias: Tensor, conv_bias: Tensor
) -> Tensor:
    """Bias [O] of a residual block's first convolution at a fixed step.

    The block adds linear(SiLU(embedding)) to every place of what that convolution gives: with the
    step fixed, a constant a channel.

    Saves 56.3 M parameters with the two MLPs before it (51.6 M in the blocks' own linear layers,
    4.7 M in the MLPs), for 40,320 constants a step; 0.9 GFLOPs.

    Args:
        embedding: of the step and the added time ids, [D].
        weight: [O, D].
        bias: [O].
        conv_bias: the convolution's own, [O].
    """
    return conv_bias + F.linear(F.silu(embedding), weight, bias)


def fold_frame_positions(
    frames: int, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    """What a temporal transformer adds to each frame, [T, C]: sinusoid, linear, SiLU, linear.

    Saves 99.2 M parameters (an MLP with 4 C hidden features in each of 16 transformers), for T C
    constants each, and 1.8 GFLOPs.
    """
    numbers = torch.arange(frames, device=weight1.device)
    return two_layers(sinusoid(numbers, weight1.shape[1]), weight1, bias1, weight2, bias2)


def fold_blend(mix_factor: Tensor, switched: bool = False) -> Tensor:
    """Share of the temporal branch in an AlphaBlender, a scalar in (0, 1), where no frame is a
    still image: x_spatial + share * (x_temporal - x_spatial).

    The UNet learns the spatial share, sigmoid(mix_factor); the decoder has it `switched`.
    Saves a `where` over an indicator [B, T] and its broadcasting; no parameters.
    """
    return torch.sigmoid(mix_factor if switched else -mix_factor).reshape(())


def fold_residual_blend(weight: Tensor, bias: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Blend of a temporal *residual* branch, in the weights of its last layer.

    x_temporal = x + f(x) with x = x_spatial, so the blend is x + share * f(x), and f ends in a
    convolution: no blending is left. Saves two elementwise operations on full feature maps in each
    of 22 blocks of the UNet and 14 of the decoder.
    """
    return weight * share, bias * share


def fold_upsample(weight: Tensor) -> Tensor:
    """Nearest x2 upsampling and a 3x3 convolution (padding 1) as one transposed convolution
    (kernel 4, stride 2, padding 1): weights [O, C, 3, 3] -> [C, O, 4, 4]; the bias stays.

    Of the nine products each output sums, those that read the same source pixel merge: along an
    axis the taps (a, b, c) become (c, b + c, a + b, a), and an output sums four products.

    Saves 5/9 of these layers' FLOPs, 743 GFLOPs in the UNet and 7610 in the decoder, and the
    upsampled tensor; costs 7/9 more parameters, 25.8 M in the UNet and 4.1 M in the decoder.
    """
    taps = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    return torch.einsum("ya,xb,ocab->coyx", taps, taps, weight)


def fold_conv3d(weight: Tensor) -> Tensor:
    """A temporal convolution for features [B, C, T, H*W]: [O, C, 3, 1, 1] -> [O, C, 3, 1], a view.

    Saves neither parameters nor FLOPs: phones have no Conv3d.
    """
    return weight.squeeze(-1)


def fold_unshuffle(weight: Tensor, patch: int) -> Tensor:
    """pixel_unshuffle and a 3x3 convolution (padding 1) as one convolution of the pixels (kernel
    3 p, stride p, padding p): weights [O, C p p, 3, 3] -> [O, C, 3 p, 3 p].

    Saves no parameters or FLOPs, but a tensor of rank 6.
    """
    out, channels = weight.shape[0], weight.shape[1] // patch**2
    taps = weight.reshape(out, channels, patch, patch, 3, 3).permute(0, 1, 4, 2, 5, 3)
    return taps.reshape(out, channels, 3 * patch, 3 * patch)


def fold_attention_scale(weight: Tensor, head_size: int) -> Tensor:
    """The factor 1 / sqrt(head_size) of the scores, in the weight (or bias) of the queries.

    Saves one multiplication of every query or score; exact to the bit for heads of 4^n features, as
    all of SVD's.
    """
    return weight * head_size**-0.5


def fold_mode(
    weight: Tensor, bias: Tensor, quant_weight: Tensor, quant_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The encoder's last convolution and `quant_conv` as one, for the mode of the posterior only.

    A 1x1 convolution after another is a product of matrices; of its 2 C rows the mode needs the
    first half, the rest is the log-variance. Saves 18,500 parameters and 0.3 GFLOPs.

    Args:
        weight: [2C, I, 3, 3].
        bias: [2C].
        quant_weight: [2C, 2C, 1, 1].
        quant_bias: [2C].

    Returns:
        weight [C, I, 3, 3] and bias [C].
    """
    mean = quant_weight[: len(quant_weight) // 2, :, 0, 0]
    return torch.einsum("om,mixy->oixy", mean, weight), quant_bias[: len(mean)] + mean @ bias
