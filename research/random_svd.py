"""A reference of Stable Video Diffusion's size with random weights, in the Hub's own layout.

`python -m pocketfocus.research.random_svd DIR [--width 1.0]` writes unet/ as fp16
shards under an index, vae/, image_encoder/ and scheduler/. Weights are drawn tensor by tensor, so
that no more than one shard is in memory. The image encoder is a small one: no file holds it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pocketfocus.distill.reference.presets import svd_scheduler
from pocketfocus.models.checkpoints import DIFFUSERS_STEM
from pocketfocus.run.errors import reported
from pocketfocus.run.progress import track

UNET_WIDTHS, UNET_HEADS = (320, 640, 1280, 1280), (5, 10, 20, 20)
VAE_WIDTHS = (128, 256, 512, 512)
DOWN, UP = "DownBlockSpatioTemporal", "UpBlockSpatioTemporal"
LAYERS, LEVELS = 2, 4
GROUPS = 32  # of diffusers' norms, which every width is a multiple of
HEAD = 64
EMBEDDING = 1024  # CLIP ViT-H's
SHARD_BYTES = 2**30
VARIANT = "fp16"


def scaled(widths: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Return widths times `factor`, as multiples of the norms' groups."""
    return tuple(max(GROUPS, round(width * factor / GROUPS) * GROUPS) for width in widths)


def write_random(
    folder: Path,
    width: float = 1.0,
    layers: int = LAYERS,
    levels: int = LEVELS,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a whole reference.

    Args:
        folder: gets the four components.
        width: factor of all channel counts; 1 is the published model.
        layers: residual blocks a level, one more upwards (one at least of the autoencoder); 2 is
            the published model.
        levels: resolutions, the first ones (two at least of the autoencoder); 4 is the published
            model.
        shard_bytes: of a file of the UNet, at most (one tensor at least).
    """
    widths = scaled(UNET_WIDTHS, width)[:levels]
    heads = UNET_HEADS[:levels] if width == 1 else tuple(w // GROUPS for w in widths)
    attentive = [n < levels - 1 for n in range(levels)]
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(
            block_out_channels=widths,
            layers_per_block=layers,
            down_block_types=tuple(f"{'CrossAttn' * has}{DOWN}" for has in attentive),
            up_block_types=tuple(f"{'CrossAttn' * has}{UP}" for has in reversed(attentive)),
            num_attention_heads=heads,
            num_frames=9,
        )
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=scaled(VAE_WIDTHS, width)[: max(2, levels)],
            down_block_types=("DownEncoderBlock2D",) * max(2, levels),
            layers_per_block=max(1, layers),
        )
    for name, part, seed in (("unet", unet, 0), ("vae", vae, 1)):
        write_component(folder / name, part, seed, shard_bytes)
    config = CLIPVisionConfig(
        hidden_size=HEAD,
        intermediate_size=HEAD,
        num_hidden_layers=1,
        num_attention_heads=1,
        patch_size=GROUPS,
        projection_dim=EMBEDDING,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    svd_scheduler().save_pretrained(folder / "scheduler")


def write_component(folder: Path, module: Any, seed: int, shard_bytes: int) -> None:
    """Write config.json and fp16 shards of a module on the meta device, in diffusers' names."""
    folder.mkdir(parents=True, exist_ok=True)
    module.save_config(folder)
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    shards = list(split(shapes, shard_bytes))
    index: dict[str, str] = {}
    for number, names in enumerate(track(shards, f"{folder.name}: random weights", len(shards)), 1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"{DIFFUSERS_STEM}.{VARIANT}{part}.safetensors"
        tensors = {name: drawn(name, shapes[name], generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = 2 * sum(map(math.prod, shapes.values()))
        content = {"metadata": {"total_size": total}, "weight_map": index}
        path = folder / f"{DIFFUSERS_STEM}.safetensors.index.{VARIANT}.json"
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def split(shapes: Mapping[str, tuple[int, ...]], shard_bytes: int) -> Iterator[list[str]]:
    """Return the names of the tensors of each fp16 file."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        more = 2 * math.prod(shape)
        if names and size + more > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names


def drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return fp16 weights as PyTorch starts convolutions and linear layers, uniform within 1 /
    sqrt(inputs of an output); norms near 1, small biases."""
    if len(shape) < 2:
        centre = 1.0 if name.endswith("weight") else 0.0
        return (centre + 0.1 * torch.randn(shape, generator=generator)).half()
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator).half()


@reported("random_svd")
def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--levels", type=int, default=LEVELS)
    options = parser.parse_args()
    write_random(options.folder, options.width, options.layers, options.levels)


if __name__ == "__main__":
    main()
