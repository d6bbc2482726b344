"""Train the default reference: autoencoder first, then denoiser and image encoder, then fp16 files.

Each phase writes a checkpoint and is resumed from it; `out` is loadable by `load_reference(out)`.
Under `accelerate launch` all processes call the same functions and the main one writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketfocus.distill.reference.autoencoder import (
    autoencoder_losses,
    draw_group,
    initialise,
    random_crops,
    reconstruction_picture,
    scaling_factor,
)
from pocketfocus.distill.reference.presets import DEFAULT, ReferencePreset, build_reference
from pocketfocus.distill.train.checkpoint import FILE, Config, check_config
from pocketfocus.distill.train.crops import Crops, check_size, current
from pocketfocus.distill.train.denoiser import (
    Denoiser,
    channel_deviation,
    denoiser_losses,
    draw_sample,
    encode_stacks,
    initialise_denoiser,
    refocused_picture,
    relative_scaling_factor,
)
from pocketfocus.distill.train.distributed import main_process_first, process_state, wants_sharding
from pocketfocus.distill.train.loop import Schedule, Task, Trainer
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic, write_json
from pocketfocus.run.progress import console

INITIAL_CROPS = 200  # stacks whose principal components the autoencoder starts from
AUTOENCODER_CROPS = (Crops(0.7, 1, 64), Crops(1.0, 1, 96))  # a sample is a group of 8 frames
# How blur looks is local: smaller crops first show more scenes a minute; larger ones show layout.
DENOISER_CROPS = (Crops(0.65, 4, 128), Crops(1.0, 2, 192))
PHASES = ("autoencoder", "denoiser", "finetune")
HASHED_STACKS = 8


def check_run(out: Path, config: Config) -> None:
    """UserError when a checkpoint of any phase in `out` was made with another config."""
    for phase in PHASES:
        check_config(out / phase / FILE, config)


def fingerprint(stacks: np.ndarray) -> str:
    """Shape of stacks and a hash of a few, for the config of a training on them."""
    chosen = np.unique(np.linspace(0, len(stacks) - 1, HASHED_STACKS).astype(int))
    digest = hashlib.sha256()
    for index in chosen:
        digest.update(np.ascontiguousarray(stacks[index]).tobytes())
    return f"{'x'.join(map(str, stacks.shape))} {digest.hexdigest()[:12]}"


def train_reference(
    stacks: np.ndarray,
    out: Path,
    autoencoder: Schedule,
    denoiser: Schedule,
    preset: ReferencePreset = DEFAULT,
    autoencoder_crops: Sequence[Crops] = AUTOENCODER_CROPS,
    denoiser_crops: Sequence[Crops] = DENOISER_CROPS,
    seed: int = 0,
    config: Config | None = None,
) -> ReferencePipeline:
    """Train on true focal stacks, uint8 [N,9,3,H,W], and write the reference to `out`.

    The crops of each training are taken in turn. Interrupted phases continue from
    `out`/autoencoder and `out`/denoiser. Raises UserError for stacks smaller than a crop, and for
    checkpoints in `out` that were made with other settings, stacks or `config`.
    """
    if wants_sharding():
        raise UserError("the small reference is not sharded: launch without --use_fsdp")
    check_size(stacks.shape, (*autoencoder_crops, *denoiser_crops))
    config = {
        **(config or {}),
        "init": None,
        "preset": asdict(preset),
        "autoencoder_crops": [asdict(part) for part in autoencoder_crops],
        "denoiser_crops": [asdict(part) for part in denoiser_crops],
        "pixels": fingerprint(stacks),
    }
    check_run(out, config)
    torch.manual_seed(seed)
    pipeline = build_reference(preset)
    step = _train_autoencoder(pipeline, stacks, out, autoencoder, autoencoder_crops, seed, config)
    latents = cached_latents(
        pipeline, stacks, out / "denoiser" / f"latents-{len(stacks)}-{step}.npy"
    )
    train_denoiser(pipeline, stacks, latents, out, denoiser, denoiser_crops, seed, config)
    save_reference(pipeline, out, {"preset": asdict(preset), "seed": seed, "scenes": len(stacks)})
    return pipeline


def resume(trainer: Trainer, name: str) -> None:
    """Go on from the checkpoint, if any, saying so."""
    if trainer.resume() and trainer.is_main:
        console.print(f"{name}: resumed at step {trainer.step}")


def _train_autoencoder(
    pipeline: ReferencePipeline,
    stacks: np.ndarray,
    out: Path,
    schedule: Schedule,
    crops: Sequence[Crops],
    seed: int,
    config: Config,
) -> int:
    vae, generator = pipeline.vae, torch.Generator().manual_seed(seed)
    initialise(vae, random_crops(stacks, INITIAL_CROPS, crops[0].size, generator).flatten(0, 1))
    trainer = Trainer(vae, schedule, out / "autoencoder", seed, config)
    resume(trainer, "autoencoder")
    vae.train()

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        return draw_group(vae, stacks, current(crops, trainer.progress).size, generator)

    task = Task(
        draw,
        lambda *batch: autoencoder_losses(vae, *batch),
        lambda: current(crops, trainer.progress).batch,
        lambda: {"truth, reconstruction": reconstruction_picture(vae, stacks, crops[-1].size)},
    )
    trainer.run(task, "autoencoder")
    trainer.load_average()
    vae.cpu().eval().requires_grad_(False)
    sample = random_crops(stacks, 8, crops[-1].size, torch.Generator().manual_seed(seed))
    vae.register_to_config(scaling_factor=scaling_factor(vae, sample.flatten(0, 1)))
    return trainer.step


def cached_latents(
    pipeline: ReferencePipeline, stacks: np.ndarray, path: Path, bf16: bool | None = None
) -> np.ndarray:
    """The unscaled latents of every frame, float16 [N,9,C,h,w], encoded once and kept in `path`."""
    with main_process_first():
        if not path.exists():
            pipeline.vae.to(process_state().device)
            latents = encode_stacks(pipeline, stacks, bf16)
            with write_atomic(path) as scratch:
                np.save(scratch, latents)
    return np.load(path, mmap_mode="r")


def denoiser_task(
    pipeline: ReferencePipeline,
    stacks: np.ndarray,
    latents: np.ndarray,
    crops: Sequence[Crops],
    trainer: Trainer,
) -> Task:
    """The EDM loss on random crops of stacks and their latents."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        size = current(crops, trainer.progress).size
        return draw_sample(pipeline, stacks, latents, size, generator)

    return Task(
        draw,
        lambda *batch: denoiser_losses(pipeline, *batch),
        lambda: current(crops, trainer.progress).batch,
        lambda: {"input, truth, estimate": refocused_picture(pipeline, stacks, crops[-1].size)},
    )


def train_denoiser(
    pipeline: ReferencePipeline,
    stacks: np.ndarray,
    latents: np.ndarray,
    out: Path,
    schedule: Schedule,
    crops: Sequence[Crops],
    seed: int,
    config: Config,
) -> None:
    """Train the denoiser and the image encoder of a small reference on true focal stacks, uint8
    [N,9,3,H,W], and their unscaled latents [N,9,C,h,w]; goes on from `out`/denoiser."""
    seeded = torch.Generator().manual_seed(seed)
    if pipeline.relative:
        scale = relative_scaling_factor(latents, torch.Generator().manual_seed(seed))
        pipeline.vae.register_to_config(scaling_factor=scale)
    initialise_denoiser(
        pipeline.unet, channel_deviation(latents, seeded) if pipeline.relative else None
    )
    trained = Denoiser(pipeline).train().requires_grad_(True)
    trainer = Trainer(trained, schedule, out / "denoiser", seed + 1, config)
    resume(trainer, "denoiser")
    pipeline.vae.to(trainer.device)
    trainer.run(denoiser_task(pipeline, stacks, latents, crops, trainer), "denoiser")
    trainer.load_average()
    trained.cpu().eval().requires_grad_(False)
    pipeline.vae.cpu()


def save_reference(pipeline: ReferencePipeline, out: Path, facts: Mapping[str, Any]) -> None:
    """Write unet/, vae/, image_encoder/ (fp16 safetensors) and scheduler/, as diffusers does.

    Of several processes the main one writes, the others wait.
    """
    state = process_state()
    if not state.is_main_process:
        state.wait_for_everyone()
        return
    for name in ("unet", "vae", "image_encoder"):
        module = getattr(pipeline, name)
        with write_atomic(out / name) as scratch:
            module.half().save_pretrained(scratch, safe_serialization=True)
        module.float()
    with write_atomic(out / "scheduler") as scratch:
        pipeline.scheduler.save_pretrained(scratch)
    write_json(out / "training.json", facts)
    state.wait_for_everyone()
