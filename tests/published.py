"""Small random models in the published classes and layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, StableVideoDiffusionPipeline
from transformers import CLIPImageProcessor

from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.models.places import LEARN2REFOCUS_UNET
from pocketfocus.run.constants import FRAMES

VIDEO_FRAMES = 14  # what the published UNet's config still says


def small_svd() -> StableVideoDiffusionPipeline:
    """SVD's own classes, the autoencoder of 4 channels included, with random weights."""
    torch.manual_seed(0)
    made = build_reference(replace(SMALLEST, relative_latents=False))
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        scaling_factor=0.18215,
    )
    return StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=made.image_encoder,
        unet=made.unet,
        scheduler=made.scheduler,
        feature_extractor=CLIPImageProcessor(),
    )


def save_svd(folder: Path, frames: int = FRAMES) -> None:
    """Like stabilityai/stable-video-diffusion-img2vid: both precisions beside each other."""
    pipeline = small_svd()
    pipeline.unet.register_to_config(num_frames=frames)
    pipeline.save_pretrained(folder, safe_serialization=True)
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True, variant="fp16")


def save_tuned(folder: Path) -> None:
    """Like tedlasai/learn2refocus: a UNet alone, whose config tells of the video model."""
    unet = small_svd().unet
    unet.register_to_config(num_frames=VIDEO_FRAMES)
    unet.save_pretrained(folder / LEARN2REFOCUS_UNET)
