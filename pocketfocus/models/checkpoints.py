"""Weights in the Hub's layout: a safetensors file, or shards under an index, of 32 or 16 bits.

They are memory-mapped: a tensor is read from disk when it is used, and float32 is never copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pocketfocus.run.errors import UserError
from pocketfocus.run.paths import below

DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
VARIANTS = (None, "fp16", "bf16")  # in the order of preference, unless said otherwise


@dataclass(frozen=True)
class WeightFiles:
    """The files of a component and their variant: one of `VARIANTS`, None for the full one."""

    files: tuple[Path, ...]
    variant: str | None


def by_preference(variant: str | None) -> tuple[str | None, ...]:
    """Return the variants, the preferred one first."""
    return (variant, *(other for other in VARIANTS if other != variant))


def find_weights(folder: Path, stem: str, preferred: str | None = None) -> WeightFiles:
    """Return the safetensors files of a component, of the preferred variant where there are such.

    Args:
        folder: such as `vae/`.
        stem: of the files' names, by the library that wrote them.
        preferred: one of `VARIANTS`.

    Raises:
        UserError: there are none, only pickled ones, or shards are missing.
    """
    for variant in by_preference(preferred):
        infix = f".{variant}" if variant else ""
        whole = folder / f"{stem}{infix}.safetensors"
        index = folder / f"{stem}.safetensors.index{infix}.json"
        if whole.is_file():
            return WeightFiles((whole,), variant)
        if index.is_file():
            return WeightFiles(_shards(index), variant)
    if any(path.suffix in PICKLES for path in folder.glob("*")):
        raise UserError(
            f"{folder} holds no .safetensors: pickled checkpoints are refused, convert it with "
            "`save_pretrained(..., safe_serialization=True)`"
        )
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        raise UserError(
            f"{folder} has {shards[0].name}, but neither {stem}.safetensors nor its index "
            f"{stem}.safetensors.index.json (or their fp16 or bf16 variants): download what is "
            "missing"
        )
    raise UserError(
        f"{folder} has no weights ({stem}.safetensors, or its fp16 or bf16 variant): download them"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """Return the files that an index names."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
        names = sorted(set(weight_map.values()))
        files = {name: below(index.parent, name) for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of shards ({error!r}): download it again") from error
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise UserError(
            f"{index.parent} lacks {len(missing)} of the {len(names)} shards its index names, such "
            f"as {missing[0]}: download the rest"
        )
    return tuple(files.values())


class Checkpoint(Mapping[str, Tensor]):
    """Memory-mapped tensors by their names, float32 whatever the file holds.

    Raises UserError for files that are cut off or no safetensors.
    """

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._files: dict[str, Any] = {}
        for path in files:
            try:
                opened: Any = safe_open(path, framework="pt")
                self._files.update(dict.fromkeys(opened.keys(), opened))
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} cannot be read ({str(error).strip()}): download it again"
                ) from error

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor.float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return shape of a tensor, which is not read."""
        return tuple(self._files[name].get_slice(name).get_shape())
