"""Focal stacks whose frames move as their lens focuses, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pocketfocus.photos.images import to_uint8
from pocketfocus.photos.registration import moved


def breathing(still: Tensor, step: Tensor) -> Tensor:
    """Move every frame by as many steps [7] as it lies from the middle one."""
    return torch.stack([moved(frame, (n - 4) * step) for n, frame in enumerate(still)])


def write_breathing(folder: Path, still: Tensor, step: Tensor) -> None:
    """Write such frames as the images of a scene's folder, which is made."""
    folder.mkdir(parents=True)
    for n, pixels in enumerate(to_uint8(breathing(still, step))):
        Image.fromarray(pixels).save(folder / f"{n}.png")
