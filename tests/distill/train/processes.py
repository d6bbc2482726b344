"""Trainings for tests that need processes of their own; run as a script.

`processes.py shared FOLDER ARGUMENT...`, under accelerate: one after another, as imports take
longer than each, `tiny`, whose last process is interrupted, `distill` with these arguments, and
`tiny` sharded; `processes.py killed FOLDER`: both phases of the smallest reference, with a
checkpoint after every step, killed in each phase and then gone on with.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
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
from pocketfocus.distill.train.checkpoint import read_counters
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.distributed import process_state
from pocketfocus.distill.train.loop import Task, Trainer
from pocketfocus.distill.train.schedule import Schedule

STEPS, NEVER = 4, 99
REFERENCE_STEPS = 10


def ramps() -> np.ndarray:
    """Smooth colour ramps that differ by stack and frame: uint8 [3, 9, 3, 64, 64]."""
    y, x = np.mgrid[0:64, 0:64] / 64
    phase = np.arange(81).reshape(3, 9, 3, 1, 1) / 20
    return ((np.sin(3 * (x + y) + phase) + 1) * 127).astype(np.uint8)


def tiny(folder: Path, batch: int, accumulate: int, stop: int, sharded: bool = False) -> Trainer:
    """Train the smallest denoiser for four steps in fp32, resumed if there is a checkpoint; the
    last process is interrupted in the step after `stop`."""
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
    AcceleratorState._reset_state()
    process_state()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    os.environ["ACCELERATE_USE_FSDP"] = "true"


def reference(folder: Path, checkpoint_minutes: float) -> None:
    """Both phases, their budget in steps."""
    schedule = Schedule(steps=REFERENCE_STEPS, log_every=1, checkpoint_minutes=checkpoint_minutes)
    phase = Phase(schedule, (Crops(0.5, 1, 16), Crops(1.0, 1, 32)))
    train_reference(ramps(), folder, phase, phase, SMALLEST)


def distill(stop: int, words: Sequence[str]) -> None:
    """`pocketfocus distill` in fp32, its last process interrupted in the step after `stop`, and the
    same command again."""
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


def killed(folder: Path) -> None:
    """Train a reference in processes that are killed with SIGKILL once a phase has a checkpoint of
    a step, then to its end. They are forked: imports take longer than a training."""
    for phase, after in (("autoencoder", 2), ("denoiser", 3)):
        path, end = folder / phase / "checkpoint.safetensors", time.monotonic() + 120
        child = os.fork()
        if not child:
            reference(folder, 0.0)
            os._exit(0)
        while not (path.exists() and read_counters(path).step >= after):
            assert os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < end
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        step = read_counters(path).step
        assert after <= step < REFERENCE_STEPS, "it was killed before the end of the phase"
    reference(folder, 0.0)


def shared(folder: Path, words: Sequence[str]) -> None:
    """All that two processes share, each in a folder of its own."""
    tiny(folder / "tiny", 2, 1, 1)
    distill(1, [*words, "--out", str(folder / "distilled")])
    tiny(folder / "sharded", 2, 1, NEVER, sharded=True)


if __name__ == "__main__":
    kind, path, *rest = sys.argv[1:]
    denoiser.PICTURE_STEPS = 1  # a step of the sampler gathers the shards twice
    if kind == "shared":
        shared(Path(path), rest)
    else:
        killed(Path(path))
