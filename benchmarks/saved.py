"""Raw tensors of a bundle, each in a file of its own with its shape, type and hash."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from pocketfocus.benchmarks.checks import Stacks
from pocketfocus.photos.images import from_uint8, to_uint8
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256
from pocketfocus.run.paths import below
from pocketfocus.run.rows import Row

GOLDEN_FILE = "golden.json"
AGAIN = "write the bundle again"
Kind = Literal["float32", "float16", "uint8"]
Decibels = Annotated[float, Field(ge=0, allow_inf_nan=False)]
KINDS: dict[Kind, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "uint8": np.dtype("u1"),
}


class Saved(Row):
    """A tensor of a bundle: its file of raw values, and what they are.

    uint8 are pixels: 0 to 255 for [-1, 1].
    """

    file: str
    shape: tuple[Annotated[int, Field(gt=0, le=1 << 20)], ...]
    dtype: Kind
    sha256: str


def named_in(bundle: Path) -> set[str]:
    """Return the files that a bundle's golden.json names, of whatever version it is; none where
    it cannot be read."""

    def named(part: object) -> Iterator[str]:
        if isinstance(part, dict) and "sha256" in part:
            yield str(part.get("file") or part.get("name"))
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        for each in inner:
            yield from named(each)

    try:
        return set(named(json.loads((bundle / GOLDEN_FILE).read_bytes())))
    except (OSError, ValueError, RecursionError):
        return set()


def check_hash(path: Path, expected: str) -> None:
    """Raise UserError unless what a bundle lists is there, with its hash."""
    if not path.exists() or sha256(path) != expected:
        raise UserError(f"{path} is not the file that {GOLDEN_FILE} lists: {AGAIN}")


def save(folder: Path, name: str, values: NDArray[Any], kind: Kind) -> Saved:
    """Write a tensor's raw values, and return its file, shape, dtype and hash."""
    path = folder / name
    if kind == "uint8":
        values = to_uint8(torch.from_numpy(values), planar=True)
    path.write_bytes(np.ascontiguousarray(values.astype(KINDS[kind])).tobytes())
    return Saved(file=name, shape=values.shape, dtype=kind, sha256=sha256(path))


def load(folder: Path, entry: Saved) -> Stacks:
    """Read a tensor that `save` wrote, as float32; UserError when its hash is another."""
    path = below(folder, entry.file)
    check_hash(path, entry.sha256)
    content, kind = path.read_bytes(), KINDS[entry.dtype]
    if len(content) != math.prod(entry.shape) * kind.itemsize:
        raise UserError(
            f"{path} has {len(content)} bytes, {entry.dtype} of {list(entry.shape)} is another "
            "number: write the bundle again"
        )
    values = np.frombuffer(content, kind).reshape(entry.shape)
    if entry.dtype == "uint8":
        return from_uint8(values, planar=True).numpy()
    return values.astype(np.float32)
