"""Fine-tune a full-size Stable Video Diffusion into a refocusing model, by one of two recipes.

As Tedla et al. (SIGGRAPH Asia 2025), both train only the temporal transformer blocks of the UNet
(397.6 of its 1524.6 M parameters) unless told otherwise, on absolute latents unless the VAE's
config says otherwise; VAE and CLIP stay frozen. What else differs, `recipes` says. What is saved is
fp16, of the EMA where a recipe has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import UNetSpatioTemporalConditionModel

from pocketfocus.distill.reference.denoiser import fingerprint, identity
from pocketfocus.distill.reference.phases import Phase, check_run, save_reference
from pocketfocus.distill.reference.recipes import OWN, Recipe
from pocketfocus.distill.train.crops import Pixels, check_size
from pocketfocus.distill.train.loop import Trainer
from pocketfocus.models.loading import assemble, load_component
from pocketfocus.models.places import find_start
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.run.errors import UserError

TRAINED = {"temporal": "temporal_transformer_block", "all": ""}  # what a parameter's name holds
SIDES = 64  # crops are multiples: the VAE halves three times, the UNet three times


def load_start(spec: str) -> ReferencePipeline:
    """Load what to start from, see `find_start`."""
    return assemble(find_start(spec), load_component)


def check_request(sides: Sequence[int], train: str) -> None:
    """Raise UserError for sides that are no multiples of 64, or a `train` not of TRAINED."""
    for side in sides:
        if side % SIDES:
            raise UserError(
                f"a full-size model takes sides in multiples of {SIDES}, not {side}: change --size"
            )
    if train not in TRAINED:
        raise UserError(f"unknown part '{train}' to train: choose from {', '.join(TRAINED)}")


def choose_trained(unet: UNetSpatioTemporalConditionModel, train: str) -> int:
    """Let only the parameters that `train` names learn; returns how many there are.

    UserError when the UNet has none of them.
    """
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(TRAINED[train] in name)
    chosen = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    if not chosen:
        raise UserError(f"the UNet has no {TRAINED[train]}: train all of it with --train all")
    return chosen


def fine_tune(
    pipeline: ReferencePipeline,
    stacks: Pixels,
    out: Path,
    phase: Phase,
    train: str = "temporal",
    recipe: Recipe = OWN,
) -> ReferencePipeline:
    """Train the UNet of `pipeline` on true focal stacks, uint8 [N,9,3,H,W], and write the reference
    to `out`, from where `load_reference` reads it.

    Goes on from `out`/finetune, where encoded stacks are kept. Raises UserError for crops, or whole
    frames, that are no multiple of 64, stacks smaller than crops, an unknown `train`, a `recipe`
    for pipelines of another form, and checkpoints in `out` that were made with other settings,
    stacks, weights or config.
    """
    if recipe is not OWN and pipeline.relative:
        raise UserError(
            f"recipe {recipe.name} is for the published form, {pipeline.name} denoises differences "
            f"to its photo: fine-tune it by {OWN.name}"
        )
    sides = stacks.shape[-2:] if recipe.whole else tuple(part.size for part in phase.crops)
    check_request(sides, train)
    check_size(stacks.shape, phase.crops)
    trained = choose_trained(pipeline.unet, train)
    config = {
        "init": pipeline.name,
        **phase.config,
        "train": train,
        "recipe": recipe.name,
        "weights": identity(pipeline.unet.conv_in.weight, pipeline.vae.encoder.conv_in.weight),
        "crops": [asdict(crops) for crops in phase.crops],
        "pixels": fingerprint(stacks),
    }
    check_run(out, config)
    folder, frozen = out / "finetune", (pipeline.vae, pipeline.image_encoder)
    task = recipe.task(pipeline, stacks, folder, phase)
    pipeline.unet.enable_gradient_checkpointing()
    trainer = Trainer(pipeline.unet.train(), phase.schedule, folder, phase.seed, config)
    trainer.resume("fine-tuning")
    for part in frozen:
        part.to(trainer.device)
    trainer.run(task, "fine-tuning")
    pipeline.unet = _averaged(trainer, pipeline.unet.config)
    for part in frozen:
        part.cpu()
    facts = {name: config[name] for name in ("init", "train", "recipe")}
    facts |= {"parameters": trained, "steps": trainer.step}
    save_reference(pipeline, out, {**facts, "seed": phase.seed, "scenes": len(stacks)})
    return pipeline


def _averaged(trainer: Trainer, config: Mapping[str, object]) -> UNetSpatioTemporalConditionModel:
    """Make a UNet of the average, whole even where the one that was trained is sharded."""
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel.from_config(config)
    unet.load_state_dict(trainer.weights(), assign=True)
    return unet.eval().requires_grad_(False)
