"""A training's checkpoint: one safetensors file, so nothing that is loaded can run code.

Keys: `model.*` weights, `ema.*` their average, `adam.{step,exp_avg,exp_avg_sq}.*` what the
optimizer (whichever it is) keeps of each, and `random`, the generator's state. Metadata: step,
minutes, and config, the JSON of what the training depends on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketfocus.distill.train.distributed import placed_like, whole
from pocketfocus.distill.train.ema import EMA
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic

FILE = "checkpoint.safetensors"
MODEL, AVERAGE, OPTIMIZER, RANDOM = "model.", "ema.", "adam.", "random"
Config = Mapping[str, object]  # JSON


@dataclass(frozen=True)
class Counters:
    """Where a training stands, and its config."""

    step: int
    minutes: float
    config: Config


@dataclass(frozen=True)
class State:
    """All that a training changes, beside its counters."""

    ema: EMA
    optimizer: torch.optim.Optimizer
    generator: torch.Generator

    def tensors(self) -> dict[str, Tensor]:
        """Gather everything, whole and on the CPU; every process has to call this."""
        found: dict[str, Tensor] = {f"{MODEL}{n}": p for n, p in self.ema.parameters.items()}
        found |= {f"{AVERAGE}{n}": p for n, p in self.ema.average.items()}
        for name, parameter in self.ema.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{OPTIMIZER}{key}.{name}"] = value
        gathered = {name: whole(tensor).cpu() for name, tensor in found.items()}
        return {**gathered, RANDOM: self.generator.get_state()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Take over what `tensors` gathered; UserError, naming the file, when it is of another
        model."""
        self._check(tensors, path)
        for name, parameter in self.ema.parameters.items():
            parameter.copy_(placed_like(tensors[f"{MODEL}{name}"], parameter))
            average = tensors[f"{AVERAGE}{name}"]
            self.ema.average[name] = placed_like(average, parameter.detach())
        for name, tensor in tensors.items():
            if name.startswith(OPTIMIZER):
                key, _, owner = name.removeprefix(OPTIMIZER).partition(".")
                parameter = self.ema.parameters[owner]
                counts = key == "step"  # optimizers count on the CPU
                kept = tensor if counts else placed_like(tensor, parameter.detach())
                self.optimizer.state[parameter][key] = kept
        self.generator.set_state(tensors[RANDOM])

    def _check(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        own = self.ema.parameters
        stored = {n.removeprefix(MODEL) for n in tensors if n.startswith(MODEL)}
        different = sorted(stored ^ own.keys()) or sorted(
            name for name in stored if tensors[f"{MODEL}{name}"].shape != own[name].shape
        )
        if different:
            raise UserError(
                f"{path} is of another model ({different[0]} differs): choose another --out "
                "or delete it"
            )


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], counters: Counters) -> None:
    """Write tensors of any shape, atomically; UserError when the folder cannot be written."""
    metadata = {name: json.dumps(value, sort_keys=True) for name, value in vars(counters).items()}
    with write_atomic(path) as scratch:
        save_file({n: t.contiguous() for n, t in tensors.items()}, scratch, metadata=metadata)


def read_counters(path: Path) -> Counters:
    """Read step, minutes and config without the weights; UserError when the file is broken."""
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
        return Counters(*(json.loads(metadata[name]) for name in ("step", "minutes", "config")))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _broken(path, error) from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Counters]:
    """Read all tensors, on the CPU, and the counters; UserError when the file is broken."""
    counters = read_counters(path)
    try:
        return load_file(path), counters
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read ({error}): delete it, or choose another --out")


def check_config(path: Path, config: Config) -> None:
    """Raise UserError when the checkpoint at `path`, if any, was made with another config.

    Compared are the entries that both have, so that options of later versions do no harm.
    """
    stored = read_counters(path).config if path.exists() else {}
    now = json.loads(json.dumps(config))
    different = [
        f"{name} was {stored[name]}, is {now[name]}"
        for name in sorted(stored.keys() & now.keys())
        if stored[name] != now[name]
    ]
    if different:
        raise UserError(
            f"{path} is of a training with other settings ({'; '.join(different)}): repeat the old "
            "ones to go on, or choose another --out"
        )
