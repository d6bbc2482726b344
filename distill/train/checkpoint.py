"""A training's checkpoint: one safetensors file, so nothing that is loaded can run code.

Keys: `model.*` weights, `ema.*` their average, `adam.{step,exp_avg,exp_avg_sq}.*` moments, and
`random`, the generator's state. Metadata: step, minutes, and config, the JSON of what the training
depends on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic

FILE = "checkpoint.safetensors"
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Counters:
    """Where a training stands, and its config (None in files of versions that stored none)."""

    step: int
    minutes: float
    config: Config | None = None


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], counters: Counters) -> None:
    """Write tensors of any shape, atomically; UserError when the folder cannot be written."""
    metadata = {"step": str(counters.step), "minutes": str(counters.minutes)}
    if counters.config is not None:
        metadata["config"] = json.dumps(counters.config, sort_keys=True)
    with write_atomic(path) as scratch:
        save_file({n: t.contiguous() for n, t in tensors.items()}, scratch, metadata=metadata)


def read_counters(path: Path) -> Counters:
    """Step, minutes and config without the weights; UserError when the file is broken."""
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
        config = json.loads(metadata["config"]) if "config" in metadata else None
        return Counters(int(metadata["step"]), float(metadata["minutes"]), config)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _broken(path, error) from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Counters]:
    """All tensors, on the CPU, and the counters; UserError when the file is broken."""
    counters = read_counters(path)
    try:
        return load_file(path), counters
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read ({error}): delete it, or choose another --out")


def check_config(path: Path, config: Config) -> None:
    """UserError when the checkpoint at `path`, if any, was made with another config.

    Compared are the entries that both have, so that options of later versions do no harm.
    """
    stored = read_counters(path).config if path.exists() else None
    now = json.loads(json.dumps(config))
    different = [
        f"{name} was {stored[name]}, is {now[name]}"
        for name in sorted((stored or {}).keys() & now.keys())
        if stored is not None and stored[name] != now[name]
    ]
    if different:
        raise UserError(
            f"{path} is of a training with other settings ({'; '.join(different)}): repeat the old "
            "ones to go on, or choose another --out"
        )
