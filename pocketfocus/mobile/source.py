"""Where the weights come from: diffusers' tensors by their names, taken without copying.

A rewritten network is built on the meta device, where it takes no memory, and is then assigned the
tensors themselves: views of the diffusers module, or of a memory-mapped file. Only what a fold
changes is new memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from pocketfocus.mobile.folds import fold_conv3d

Tensors = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Source:
    """The tensors of a diffusers module below `prefix`."""

    tensors: Mapping[str, Tensor]
    prefix: str = ""

    def at(self, name: str) -> Source:
        """The module `name` of this one."""
        return Source(self.tensors, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]


class Rewritten(nn.Module):
    """A layer that takes its weights from the diffusers layer that it replaces.

    Children of the same name take theirs from there; layers with other names or folds override.
    """

    def take(self, source: Source) -> Tensors:
        """This layer's tensors by their names in it."""
        return gather({name: take(part, source.at(name)) for name, part in self.named_children()})


def take(module: nn.Module, source: Source) -> Tensors:
    """The tensors of `module` from the diffusers module at `source`; Conv3d's as Conv2d's."""
    if isinstance(module, Rewritten):
        return module.take(source)
    if isinstance(module, nn.ModuleList):
        return gather({str(i): take(part, source.at(str(i))) for i, part in enumerate(module)})
    found = {name: source[name] for name, _ in module.named_parameters()}
    return {name: fold_conv3d(t) if t.ndim == 5 else t for name, t in found.items()}


def gather(parts: Mapping[str, Tensors]) -> Tensors:
    """One flat dictionary, `part.name` -> tensor."""
    return {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}


@torch.no_grad()
def build(make: Callable[[], Network], tensors: Callable[[Network], Tensors]) -> Network:
    """A network in evaluation mode that is assigned the tensors made for it; nothing is copied.

    Args:
        make: makes the network; called on the meta device.
        tensors: its whole state from its structure.
    """
    with torch.device("meta"):
        network = make()
    network.load_state_dict(tensors(network), assign=True)
    return network.eval().requires_grad_(False)
