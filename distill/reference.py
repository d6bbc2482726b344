"""Train the default reference: autoencoder first, then denoiser and image encoder, then fp16 files.

Each phase writes a checkpoint and is resumed from it; `out` is loadable by `load_reference(out)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketfocus.distill.autoencoder import (
    autoencoder_batch,
    autoencoder_losses,
    initialise,
    random_crops,
    scaling_factor,
)
from pocketfocus.distill.denoiser import (
    Denoiser,
    crop_batch,
    denoiser_losses,
    encode_stacks,
    initialise_denoiser,
    relative_scaling_factor,
)
from pocketfocus.distill.loop import Schedule, Trainer
from pocketfocus.distill.presets import DEFAULT, ReferencePreset, build_reference
from pocketfocus.errors import UserError
from pocketfocus.files import write_atomic, write_json
from pocketfocus.progress import console
from pocketfocus.reference import ReferencePipeline


@dataclass(frozen=True)
class Crops:
    """`batch` crops of `size` pixels, until this share of the budget is spent."""

    until: float
    batch: int
    size: int


INITIAL_CROPS = 200  # stacks whose principal components the autoencoder starts from
AUTOENCODER_CROPS = (Crops(0.7, 8, 64), Crops(1.0, 8, 96))
# How blur looks is local: small crops first give more scenes a minute.
DENOISER_CROPS = (Crops(0.45, 8, 64), Crops(1.0, 3, 128))


def current(crops: Sequence[Crops], progress: float) -> Crops:
    """The crops to take when this share of the budget is spent."""
    return next((part for part in crops if progress < part.until), crops[-1])


def train_reference(
    stacks: np.ndarray,
    out: Path,
    autoencoder: Schedule,
    denoiser: Schedule,
    preset: ReferencePreset = DEFAULT,
    autoencoder_crops: Sequence[Crops] = AUTOENCODER_CROPS,
    denoiser_crops: Sequence[Crops] = DENOISER_CROPS,
    seed: int = 0,
) -> ReferencePipeline:
    """Train on true focal stacks, uint8 [N,9,3,H,W], and write the reference to `out`.

    The crops of each training are taken in turn. Interrupted phases continue from
    `out`/autoencoder and `out`/denoiser. Raises UserError for stacks smaller than a crop.
    """
    largest = max(part.size for part in (*autoencoder_crops, *denoiser_crops))
    if min(stacks.shape[-2:]) < largest:
        raise UserError(
            f"stacks are {stacks.shape[-2:]} pixels, crops need {largest}: render larger"
        )
    torch.manual_seed(seed)
    pipeline = build_reference(preset)
    first = _train_autoencoder(pipeline, stacks, out, autoencoder, autoencoder_crops, seed)
    latents = _latents(pipeline, stacks, out / "denoiser", first)
    if pipeline.relative:
        scale = relative_scaling_factor(latents, torch.Generator().manual_seed(seed))
        pipeline.vae.register_to_config(scaling_factor=scale)
    _train_denoiser(pipeline, stacks, latents, out, denoiser, denoiser_crops, seed)
    save_reference(pipeline, out, {"preset": asdict(preset), "seed": seed, "scenes": len(stacks)})
    return pipeline


def _train_autoencoder(
    pipeline: ReferencePipeline,
    stacks: np.ndarray,
    out: Path,
    schedule: Schedule,
    crops: Sequence[Crops],
    seed: int,
) -> int:
    generator = torch.Generator().manual_seed(seed)
    initialise(
        pipeline.vae, random_crops(stacks, INITIAL_CROPS, crops[0].size, generator).flatten(0, 1)
    )
    trainer = Trainer(pipeline.vae, schedule, out / "autoencoder", seed)
    if trainer.resume():
        console.print(f"autoencoder: resumed at step {trainer.step}")
    pipeline.vae.train()

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        part = current(crops, trainer.progress)
        batch, together = autoencoder_batch(stacks, part.batch, part.size, generator)
        return autoencoder_losses(pipeline.vae, batch, together, generator)

    trainer.run(losses, "autoencoder")
    trainer.save()
    trainer.load_average()
    pipeline.vae.eval().requires_grad_(False)
    sample = random_crops(stacks, 8, crops[-1].size, torch.Generator().manual_seed(seed))
    pipeline.vae.register_to_config(
        scaling_factor=scaling_factor(pipeline.vae, sample.flatten(0, 1))
    )
    return trainer.step


def _latents(
    pipeline: ReferencePipeline, stacks: np.ndarray, folder: Path, autoencoder_step: int
) -> np.ndarray:
    path = folder / f"latents-{len(stacks)}-{autoencoder_step}.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    latents = encode_stacks(pipeline, stacks)
    with write_atomic(path) as scratch:
        np.save(scratch, latents)
    return latents


def _train_denoiser(
    pipeline: ReferencePipeline,
    stacks: np.ndarray,
    latents: np.ndarray,
    out: Path,
    schedule: Schedule,
    crops: Sequence[Crops],
    seed: int,
) -> None:
    initialise_denoiser(pipeline.unet)
    trained = Denoiser(pipeline).train().requires_grad_(True)
    trainer = Trainer(trained, schedule, out / "denoiser", seed + 1)
    if trainer.resume():
        console.print(f"denoiser: resumed at step {trainer.step}")

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        part = current(crops, trainer.progress)
        batch = crop_batch(stacks, latents, part.batch, part.size, generator)
        return denoiser_losses(pipeline, *batch, generator)

    trainer.run(losses, "denoiser")
    trainer.save()
    trainer.load_average()
    trained.eval().requires_grad_(False)


def save_reference(pipeline: ReferencePipeline, out: Path, facts: Mapping[str, Any]) -> None:
    """Write unet/, vae/, image_encoder/ (fp16 safetensors) and scheduler/, as diffusers does."""
    for name in ("unet", "vae", "image_encoder"):
        module = getattr(pipeline, name)
        with write_atomic(out / name) as scratch:
            module.half().save_pretrained(scratch, safe_serialization=True)
        module.float()
    with write_atomic(out / "scheduler") as scratch:
        pipeline.scheduler.save_pretrained(scratch)
    write_json(out / "training.json", facts)
