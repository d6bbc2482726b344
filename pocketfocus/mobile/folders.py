"""A reference's folders straight into the rewritten networks, their weights memory-mapped.

No diffusers network is made but on the meta device, to know the names and shapes that its config
asks for: the weights are in memory once, and only as far as they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from pocketfocus.models.checkpoints import DIFFUSERS_STEM, Checkpoint, find_weights
from pocketfocus.models.loading import (
    attempt,
    check_weights,
    component_folder,
    load_component,
    place_of,
)


@dataclass(frozen=True)
class Opened:
    """A diffusers component on disk: what the rewrite asks of a module, and no module."""

    config: Any
    tensors: Mapping[str, Tensor]

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its tensors, read when they are used."""
        return self.tensors


def open_component(cls: Any, root: str, subfolder: str, preferred: str | None = None) -> Any:
    """A component as `assemble` takes it: `Opened` where it is a diffusers network in a folder."""
    folder = component_folder(root, subfolder)
    if folder is None or cls in (EulerDiscreteScheduler, CLIPVisionModelWithProjection):
        return load_component(cls, root, subfolder, preferred)
    opened = Checkpoint(find_weights(folder, DIFFUSERS_STEM, preferred).files)
    with torch.device("meta"):  # without memory for its weights
        expected = attempt(lambda: cls.from_config(cls.load_config(folder)), root, subfolder)
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.state_dict().items()}
    both = shapes.keys() & opened.keys()
    info = {
        "missing_keys": sorted(shapes.keys() - opened.keys()),
        "unexpected_keys": sorted(opened.keys() - shapes.keys()),
        "mismatched_keys": sorted(name for name in both if shapes[name] != opened.shape(name)),
    }
    check_weights(info, place_of(root, subfolder))
    return Opened(expected.config, opened)
