"""How a full-size model is fine-tuned, as data: our way, and the one of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pocketfocus.distill.reference.denoiser import (
    CONTENT,
    EncodedStacks,
    encode_stack,
    encoded_once,
)
from pocketfocus.distill.reference.phases import Phase, denoiser_task
from pocketfocus.distill.reference.published import published_task
from pocketfocus.distill.train.crops import Pixels
from pocketfocus.distill.train.loop import Task
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError

LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Recipe:
    """How a full-size model is fine-tuned.

    Attributes:
        name: on the command line.
        task: of a pipeline, stacks, a folder to keep encoded stacks in, and the phase.
        size: of the stacks, unless said otherwise.
        whole: whether it takes whole frames of any shape; else square crops.
        scaled: whether the learning rate is per sample of a step.
        schedule: all of it but its length, learning rate and accumulation.
    """

    name: str
    task: Callable[[ReferencePipeline, Pixels, Path, Phase], Task]
    size: Size
    whole: bool = False
    scaled: bool = False
    schedule: Schedule = field(default_factory=Schedule)


def own_task(pipeline: ReferencePipeline, stacks: Pixels, folder: Path, phase: Phase) -> Task:
    """Make the task of our way; latents are encoded once, in fp32, and kept in `folder`."""
    encode, content = partial(encode_stack, bf16=False), phase.config.get(CONTENT)
    latents = encoded_once(folder / "latents.npy", pipeline, stacks, encode, content)
    return denoiser_task(pipeline, EncodedStacks(stacks, latents), phase.crops)


# Square crops, modes of latents, inference's own time ids and embedding; warm-up, cosine, clipped
# gradients, EMA.
OWN = Recipe("pocketfocus", own_task, (256, 256))
# The published code: AdamW with its own settings (see `published_adamw` on parameters that it lists
# twice), a constant rate for every sample of a step, neither warm-up, clipping nor EMA, float32.
PAPER = Recipe(
    "paper",
    published_task,
    (896, 640),
    whole=True,
    scaled=True,
    schedule=Schedule(
        optimizer="adamw-published",
        warmup_steps=1,
        decay=0.0,
        clip_norm=math.inf,
        ema_decay=0.0,
        bf16=False,
    ),
)
RECIPES = {recipe.name: recipe for recipe in (OWN, PAPER)}


def get_recipe(name: str) -> Recipe:
    """Return a recipe by its name; UserError names the known ones."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe '{name}': choose from {', '.join(RECIPES)}")
    return RECIPES[name]
