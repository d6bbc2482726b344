"""What depends on the step and on the photo only, as biases of the rewritten UNet.

The time embedding ends in the bias of each residual block's first convolution, the CLIP embedding,
a single token, in the bias of each self-attention's output: no operator of the network is spent on
either. A student at fixed steps has one set of biases a step and shares everything else.

Legend: D width of the time embedding, E of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from pocketfocus.mobile.blocks import ResBlock, Transformer
from pocketfocus.mobile.folds import (
    fold_cross_attention,
    fold_time_embedding,
    sinusoid,
    two_layers,
)
from pocketfocus.mobile.source import Source, Tensors, build
from pocketfocus.mobile.unet import MobileUNet

PARTS = {"spatial": "spatial_res_block", "temporal": "temporal_res_block"}
TRANSFORMERS = ("transformer_blocks", "temporal_transformer_blocks")


@dataclass(frozen=True)
class Conditioning:
    """Biases of a rewritten UNet from the tensors of the diffusers UNet.

    Attributes:
        source: the diffusers UNet's tensors; only what the rewrite left out is read.
        resnets: names of the residual blocks, the same in both networks.
        transformers: name and depth of the transformers.
        id_channels: features of each added time id.
    """

    source: Source
    resnets: tuple[str, ...]
    transformers: tuple[tuple[str, int], ...]
    id_channels: int

    @classmethod
    def of(cls, unet: MobileUNet, tensors: Mapping[str, Tensor]) -> Conditioning:
        """That of `unet`, whose weights came from `tensors`."""
        named = list(unet.named_modules())
        return cls(
            Source(tensors),
            tuple(name for name, part in named if isinstance(part, ResBlock)),
            tuple(
                (name, len(part.transformer_blocks))
                for name, part in named
                if isinstance(part, Transformer)
            ),
            unet.config.addition_time_embed_dim,
        )

    @torch.no_grad()
    def step(self, t: Tensor, ids: Tensor) -> Tensors:
        """Biases of a denoising step.

        Args:
            t: the scheduler's timestep, a scalar: 0.25 ln(sigma) (Karras et al. 2022, table 1).
            ids: added time ids [3].
        """
        embedding = self.time_embedding(t, ids)
        names = ("time_emb_proj.weight", "time_emb_proj.bias", "conv1.bias")
        biases = {}
        for name in self.resnets:
            for ours, part in PARTS.items():
                found = [self.source[f"{name}.{part}.{each}"] for each in names]
                biases[f"{name}.{ours}.conv1.bias"] = fold_time_embedding(embedding, *found)
        return biases

    def time_embedding(self, t: Tensor, ids: Tensor) -> Tensor:
        """[D]: MLP of the timestep's sinusoid, plus MLP of those of the ids."""
        time, added = self.source.at("time_embedding"), self.source.at("add_embedding")
        channels = time["linear_1.weight"].shape[1]
        embedded = two_layers(sinusoid(t.reshape(1), channels), *mlp(time))
        features = sinusoid(ids, self.id_channels).reshape(1, -1)
        return (embedded + two_layers(features, *mlp(added)))[0]

    @torch.no_grad()
    def photo(self, embedding: Tensor) -> Tensors:
        """Biases of a photo, from its CLIP embedding [E]; zeros for the unconditional pass."""
        names = ("attn2.to_v.weight", "attn2.to_out.0.weight", "attn2.to_out.0.bias")
        biases = {}
        for name, depth in self.transformers:
            for kind in TRANSFORMERS:
                for n in range(depth):
                    block = self.source.at(f"{name}.{kind}.{n}")
                    constant = fold_cross_attention(embedding, *(block[each] for each in names))
                    bias = block["attn1.to_out.0.bias"] + constant
                    biases[f"{name}.{kind}.{n}.attn1.to_out.bias"] = bias
        return biases


def mlp(source: Source) -> list[Tensor]:
    """Weights and biases of a TimestepEmbedding."""
    return [source[f"linear_{n}.{kind}"] for n in (1, 2) for kind in ("weight", "bias")]


def run(unet: MobileUNet, biases: Tensors, x: Tensor) -> Tensor:
    """One evaluation with these biases, [T,I,h,w] -> [T,C,h,w]; `unet` is left as it is."""
    output: Tensor = functional_call(unet, biases, (x,))
    return output


def baked(unet: MobileUNet, biases: Tensors) -> MobileUNet:
    """The network of one step and photo, for a file; it shares all else with `unet`."""
    state = {**unet.state_dict(), **biases}
    return build(lambda: MobileUNet(unet.config, unet.frames), lambda _: state)
