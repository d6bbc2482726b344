"""Trainings for tests that need processes of their own; run as a script, under accelerate or not.

`processes.py tiny FOLDER BATCH ACCUMULATE STOP [sharded]`: the smallest denoiser for four steps,
its last process interrupted in the step after STOP; `processes.py reference FOLDER`: both phases of
the smallest reference, with a checkpoint after every step; `processes.py distill STOP ARGUMENT...`:
the command, its last process interrupted in the step after STOP, and the same command again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType, PartialState
from torch import Tensor

from pocketfocus.cli import main
from pocketfocus.distill.reference import denoiser
from pocketfocus.distill.reference.denoiser import EncodedStacks, initialise_denoiser
from pocketfocus.distill.reference.phases import (
    Phase,
    denoiser_task,
    train_reference,
    trained_parts,
)
from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.distill.student import stage
from pocketfocus.distill.student.samples import true_batch
from pocketfocus.distill.train import loop
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.distributed import process_state
from pocketfocus.distill.train.loop import Task, Trainer
from pocketfocus.distill.train.schedule import Schedule

STEPS = 4
REFERENCE_STEPS = 10


def ramps() -> np.ndarray:
    """Smooth colour ramps that differ by stack and frame: uint8 [3, 9, 3, 64, 64]."""
    y, x = np.mgrid[0:64, 0:64] / 64
    phase = np.arange(81).reshape(3, 9, 3, 1, 1) / 20
    return ((np.sin(3 * (x + y) + phase) + 1) * 127).astype(np.uint8)


def tiny(folder: Path, batch: int, accumulate: int, stop: int, sharded: bool = False) -> Trainer:
    """Train in fp32, resumed if there is a checkpoint."""
    torch.manual_seed(0)
    pipeline = build_reference(SMALLEST)
    initialise_denoiser(pipeline.unet)
    latents = np.random.default_rng(0).normal(size=(3, 9, 4, 8, 8)).astype(np.float16)
    if sharded:
        force_sharding()
    pipeline.vae.requires_grad_(False)
    schedule = Schedule(
        steps=STEPS,
        log_every=1,
        warmup_steps=1,
        learning_rate=1e-3,
        bf16=False,
        accumulate=accumulate,
    )
    trainer = Trainer(trained_parts(pipeline), schedule, folder, seed=3)
    trainer.resume()
    stacks = EncodedStacks(ramps(), latents)
    task = denoiser_task(pipeline, stacks, (Crops(1.0, batch, 16),))

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        if trainer.step == stop and process_state().is_last_process:
            os.kill(os.getpid(), signal.SIGINT)
        return task.draw(size, generator)

    with contextlib.suppress(KeyboardInterrupt):
        trainer.run(Task(draw, task.losses, task.crops, task.pictures), "test")
    return trainer


def force_sharding() -> None:
    """Let accelerate take CPU processes for GPUs: it shards on nothing else, gloo can."""
    process_state()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    os.environ["ACCELERATE_USE_FSDP"] = "true"


def reference(folder: Path, checkpoint_minutes: float) -> None:
    """Both phases, their budget in steps."""
    schedule = Schedule(steps=REFERENCE_STEPS, log_every=1, checkpoint_minutes=checkpoint_minutes)
    phase = Phase(schedule, (Crops(0.5, 1, 16), Crops(1.0, 1, 32)))
    train_reference(ramps(), folder, phase, phase, SMALLEST)


def distill(stop: int, words: Sequence[str]) -> None:
    """`pocketfocus distill` twice, in fp32."""
    vars(loop)["computes_in_bf16"] = lambda device: False
    drawn, draw = 0, true_batch

    def interrupting(*arguments: Any) -> Any:
        nonlocal drawn
        if drawn == 4 * stop and process_state().is_last_process:
            os.kill(os.getpid(), signal.SIGINT)
        drawn += 1
        return draw(*arguments)

    vars(stage)["true_batch"] = interrupting
    codes = [main(["distill", *words]) for _ in range(2)]
    assert codes == [130, 0], codes


if __name__ == "__main__":
    kind, path, *rest = sys.argv[1:]
    denoiser.PICTURE_STEPS = 1  # a step of the sampler gathers the shards twice
    if kind == "distill":
        distill(int(path), rest)
    elif kind == "tiny":
        tiny(Path(path), int(rest[0]), int(rest[1]), int(rest[2]), "sharded" in rest)
    else:
        reference(Path(path), 0.0)
