"""Sizes of the default reference: the classes of Stable Video Diffusion, small, as data."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pocketfocus.models.autoencoder import QUARTERS, CompactAutoencoder
from pocketfocus.models.reference import PLANES, ReferencePipeline
from pocketfocus.run.constants import FRAMES


@dataclass(frozen=True)
class ReferencePreset:
    """Widths and depths of the three networks; channel counts are multiples of 32 (GroupNorm).

    defocus_radii: of the discs in `ReferencePipeline.basis`, pixels, if relative.

    attention_levels: the first levels of the UNet that have attention, beside its middle. None by
    default: at the top it takes most of the time and none of the error away (docs/training.md).
    """

    vae_channels: tuple[int, ...] = (64,)
    latent_channels: int = 96
    unet_channels: tuple[int, ...] = (64, 96)
    attention_levels: int = 0
    layers: int = 1
    embedding: int = 64
    clip_hidden: int = 64
    clip_layers: int = 2
    relative_latents: bool = True
    defocus_radii: tuple[float, ...] = (0.5, 1.0, 1.8, 3.0, 4.5)


DEFAULT = ReferencePreset()
SMALLEST = ReferencePreset((32,), 4, (32, 32), 1, 1, 32, 32, 1)  # for tests


def build_reference(preset: ReferencePreset = DEFAULT) -> ReferencePipeline:
    """Make an untrained reference of this size."""
    attentive = [n < preset.attention_levels for n in range(len(preset.unet_channels))]
    radii = preset.defocus_radii if preset.relative_latents else ()
    vae = CompactAutoencoder(
        down_block_types=("DownEncoderBlock2D",) * len(preset.vae_channels),
        block_out_channels=preset.vae_channels,
        latent_channels=preset.latent_channels,
        layers_per_block=preset.layers,
        relative_latents=preset.relative_latents,
        defocus_radii=radii,
    )
    unet = UNetSpatioTemporalConditionModel(
        sample_size=32,
        in_channels=2 * preset.latent_channels + PLANES * preset.relative_latents,
        out_channels=preset.latent_channels + QUARTERS * len(radii),
        down_block_types=tuple(f"{'CrossAttn' * has}DownBlockSpatioTemporal" for has in attentive),
        up_block_types=tuple(
            f"{'CrossAttn' * has}UpBlockSpatioTemporal" for has in reversed(attentive)
        ),
        block_out_channels=preset.unet_channels,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=preset.layers,
        cross_attention_dim=preset.embedding,
        num_attention_heads=tuple(c // 32 for c in preset.unet_channels),
        num_frames=FRAMES,
    )
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=preset.clip_hidden,
            intermediate_size=2 * preset.clip_hidden,
            num_hidden_layers=preset.clip_layers,
            num_attention_heads=2,
            patch_size=32,
            projection_dim=preset.embedding,
        )
    )
    return ReferencePipeline(vae, unet, encoder, svd_scheduler())


def svd_scheduler() -> EulerDiscreteScheduler:
    """Make the scheduler of Stable Video Diffusion: v-prediction, Karras sigmas 0.002 to 700."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
