"""Train the default reference: autoencoder first, then denoiser and image encoder, then fp16 files.

Each phase writes a checkpoint and is resumed from it; `out` is loadable by `load_reference(out)`.
Under `accelerate launch` all processes call the same functions and the main one writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pocketfocus.distill.reference.autoencoder import (
    autoencoder_losses,
    draw_group,
    initialise,
    reconstruction_picture,
    scaling_factor,
)
from pocketfocus.distill.reference.denoiser import (
    CONTENT,
    DenoiserBatch,
    EncodedStacks,
    denoiser_losses,
    draw_sample,
    encode_stack,
    encoded_once,
    fingerprint,
    initialise_denoiser,
    refocused_picture,
)
from pocketfocus.distill.reference.presets import DEFAULT, ReferencePreset, build_reference
from pocketfocus.distill.train.checkpoint import FILE, Config, check_config
from pocketfocus.distill.train.crops import Crops, Pixels, check_size, random_crops
from pocketfocus.distill.train.distributed import process_state, wants_sharding
from pocketfocus.distill.train.loop import Task, Trainer
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_json, write_set

INITIAL_CROPS = 200  # stacks whose principal components the autoencoder starts from
AUTOENCODER_CROPS = (Crops(0.7, 1, 64), Crops(1.0, 1, 96))  # a sample is a group of 8 frames
# How blur looks is local: smaller crops first show more scenes a minute; larger ones show layout.
DENOISER_CROPS = (Crops(0.65, 4, 128), Crops(1.0, 2, 192))
PHASES = ("autoencoder", "denoiser", "finetune")


@dataclass(frozen=True)
class Phase:
    """How one network is trained."""

    schedule: Schedule
    crops: tuple[Crops, ...]
    seed: int = 0
    config: Config = field(default_factory=dict)  # what else a checkpoint has to agree with


def check_run(out: Path, config: Config) -> None:
    """Raise UserError when a checkpoint of any phase in `out` was made with another config."""
    for phase in PHASES:
        check_config(out / phase / FILE, config)


def train_reference(
    stacks: Pixels,
    out: Path,
    autoencoder: Phase,
    denoiser: Phase,
    preset: ReferencePreset = DEFAULT,
) -> ReferencePipeline:
    """Train on true focal stacks, uint8 [N,9,3,H,W], and write the reference to `out`.

    Interrupted phases continue from `out`/autoencoder and `out`/denoiser; more steps or minutes
    train the denoiser further, and the autoencoder where that has not begun. Seed and config are
    those of the autoencoder's. Raises UserError for stacks smaller than a crop, and for checkpoints
    in `out` that were made with other settings, stacks or configs.
    """
    if wants_sharding():
        raise UserError("the small reference is not sharded: launch without --use_fsdp")
    check_size(stacks.shape, (*autoencoder.crops, *denoiser.crops))
    seed = autoencoder.seed
    config = {
        **autoencoder.config,
        "init": None,
        "preset": asdict(preset),
        "autoencoder_crops": [asdict(part) for part in autoencoder.crops],
        "denoiser_crops": [asdict(part) for part in denoiser.crops],
        "pixels": fingerprint(stacks),
    }
    check_run(out, config)
    torch.manual_seed(seed)
    pipeline = build_reference(preset)
    _train_autoencoder(pipeline, stacks, out, replace(autoencoder, config=config))
    path, content = out / "denoiser" / "latents.npy", config.get(CONTENT)
    latents = encoded_once(path, pipeline, stacks, encode_stack, content)
    encoded = EncodedStacks(stacks, latents)
    train_denoiser(pipeline, encoded, out, replace(denoiser, config=config))
    save_reference(pipeline, out, {"preset": asdict(preset), "seed": seed, "scenes": len(stacks)})
    return pipeline


def _train_autoencoder(
    pipeline: ReferencePipeline, stacks: Pixels, out: Path, phase: Phase
) -> None:
    """Train the autoencoder, or go on; once a denoiser has begun to learn its latents, it stays as
    it is, however much longer the budget has become; UserError where its checkpoint is gone."""
    vae, crops, seed = pipeline.vae, phase.crops, phase.seed
    generator = torch.Generator().manual_seed(seed)
    initialise(vae, random_crops(stacks, INITIAL_CROPS, crops[0].size, generator).flatten(0, 1))
    trainer = Trainer(vae, phase.schedule, out / "autoencoder", seed, phase.config)
    resumed, settled = trainer.resume("autoencoder"), (out / "denoiser" / FILE).exists()
    if settled and not resumed:
        raise UserError(
            f"{out / 'denoiser'} has learned latents of an autoencoder, and {trainer.path} is "
            "gone: delete that folder to train both anew, or choose another --out"
        )
    vae.train()

    task = Task(
        partial(draw_group, vae, stacks),
        partial(autoencoder_losses, vae),
        crops,
        lambda: {"truth, reconstruction": reconstruction_picture(vae, stacks, crops[-1].size)},
    )
    if not settled:
        trainer.run(task, "autoencoder")
    trainer.ema.load()
    vae.cpu().eval().requires_grad_(False)
    sample = random_crops(stacks, 8, crops[-1].size, torch.Generator().manual_seed(seed))
    vae.register_to_config(scaling_factor=scaling_factor(vae, sample.flatten(0, 1)))


def denoiser_task(
    pipeline: ReferencePipeline, stacks: EncodedStacks, crops: tuple[Crops, ...]
) -> Task:
    """Make the task of the EDM loss on random crops of stacks."""
    picture = partial(refocused_picture, pipeline, stacks.pixels, crops[-1].size)
    return Task(
        partial(draw_sample, pipeline, stacks),
        lambda *batch: denoiser_losses(pipeline, DenoiserBatch(*batch)),
        crops,
        lambda: {"input, truth, estimate": picture()},
    )


def trained_parts(pipeline: ReferencePipeline) -> nn.ModuleDict:
    """Name what is trained of a small reference's denoiser: UNet and image encoder."""
    return nn.ModuleDict({"unet": pipeline.unet, "image_encoder": pipeline.image_encoder})


def train_denoiser(
    pipeline: ReferencePipeline, stacks: EncodedStacks, out: Path, phase: Phase
) -> None:
    """Train the denoiser and the image encoder of a small reference on true focal stacks; goes on
    from `out`/denoiser."""
    seed = phase.seed
    deviation = None
    if pipeline.relative:
        scale = stacks.relative_scaling_factor(torch.Generator().manual_seed(seed))
        pipeline.vae.register_to_config(scaling_factor=scale)
        deviation = stacks.channel_deviation(torch.Generator().manual_seed(seed))
    initialise_denoiser(pipeline.unet, deviation)
    trained = trained_parts(pipeline).train().requires_grad_(True)
    trainer = Trainer(trained, phase.schedule, out / "denoiser", seed + 1, phase.config)
    trainer.resume("denoiser")
    pipeline.vae.to(trainer.device)
    trainer.run(denoiser_task(pipeline, stacks, phase.crops), "denoiser")
    trainer.ema.load()
    trained.cpu().eval().requires_grad_(False)
    pipeline.vae.cpu()


def save_reference(pipeline: ReferencePipeline, out: Path, facts: Mapping[str, object]) -> None:
    """Write unet/, vae/, image_encoder/ (fp16 safetensors) and scheduler/, as diffusers does.

    Of several processes the main one writes, the others wait.
    """
    pipeline.unet.register_to_config(num_frames=FRAMES)  # a tuned one's may be the video model's
    state = process_state()
    if not state.is_main_process:
        state.wait_for_everyone()
        return
    with write_set(out) as scratch:
        for name in ("unet", "vae", "image_encoder"):
            module = getattr(pipeline, name)
            module.half().save_pretrained(scratch / name, safe_serialization=True)
            module.float()
        pipeline.scheduler.save_pretrained(scratch / "scheduler")
        write_json(scratch / "training.json", facts)
    state.wait_for_everyone()
