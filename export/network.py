"""What is exported: networks, their inputs and outputs, and real calls to calibrate them with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from pocketfocus.quantize.layers import Weighted, capture, execution_order
from pocketfocus.run.constants import Size, size_text
from pocketfocus.run.manifest import Function, Manifest, TensorSpec

Calls = list[tuple[Tensor, ...]]
"""What a network is called with, each time."""


@dataclass(frozen=True, eq=False)
class Network:
    """One network of a student or a reference; every target writes any of them.

    Attributes:
        name: the stem of its files.
        make: the network in fp32, in its form for inference. Who calls it is the only one to hold
            its weights, and may change them.
        inputs: what it takes, in order.
        outputs: what it gives, in order.
        calibration: real calls.
        variants: the same network for photos of other sizes, which goes into the same files; its
            calibration is an example alone.
        multiple: what both sides of a photo are multiples of; 0 where its inputs have one shape.
        check: a call that is none of these, for files that are held against the network in fp32.
        once: whether it has no weights, and is written once a target whatever the precisions.
        origin: what a process of its own makes the network of, the arguments of
            `reference.reference_network`; None for a network so small that it needs no process.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calibration: Callable[[], Calls]
    variants: tuple[Network, ...] = ()
    multiple: int = 0
    check: Callable[[], tuple[Tensor, ...]] | None = None
    once: bool = False
    origin: Mapping[str, object] | None = None

    @property
    def every(self) -> tuple[Network, ...]:
        """The network for photos of every size, the usual one first."""
        return (self, *self.variants)

    @property
    def size(self) -> Size:
        """(H, W) of its first input, the photo or a tensor like one."""
        return self.inputs[0].shape[-2], self.inputs[0].shape[-1]

    @property
    def free_sides(self) -> int:
        """What sides are multiples of in a graph for all sizes; 0 where there is but one."""
        return self.multiple if self.variants else 0

    def functions(self, main: str) -> dict[str, Network]:
        """The network for photos of every size by the name of its function in a file, where the
        usual one is `main`: the same name, and the size as width by height."""
        return {main: self} | {f"{main}_{size_text(each.size)}": each for each in self.variants}

    @property
    def isolated(self) -> bool:
        """Whether its files are written in processes of their own.

        So a file's peak memory is its own, and all of it is free again when the next one begins.
        Of such a file no more is read back than its target can without loading it twice.
        """
        return self.origin is not None

    @cached_property
    def order(self) -> list[Weighted]:
        """Every convolution and product, in the order of execution."""
        return execution_order(capture(self.make(), self.calibration()).graph)


@dataclass(frozen=True)
class Source:
    """Networks that go into files together.

    Attributes:
        networks: to be written.
        names: of all that a folder of them may hold.
        key: what tells their weights from others.
        manifest: what a run says of them, without files.
        again: JSON of which another process makes the same; None where one never does.
    """

    networks: Sequence[Network]
    names: Sequence[str]
    key: Any
    manifest: Manifest
    again: Mapping[str, object] | None = None


def functions_of(network: Network, main: str) -> tuple[Function, ...]:
    """What to call in a file for photos of each size, where it has a function for each."""
    every = network.functions(main) if network.variants else {}
    return tuple(Function(name, each.size) for name, each in every.items())
