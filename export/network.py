"""What is exported: networks, their inputs and outputs, and real calls to calibrate them with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from pocketfocus.quantize.layers import Weighted, capture, execution_order
from pocketfocus.run.manifest import Manifest, TensorSpec

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
        check: a call that is none of these, for files that are held against the network in fp32.
        origin: what a process of its own makes the network of, the arguments of
            `reference.reference_network`; None for a network so small that it needs no process.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calibration: Callable[[], Calls]
    check: Callable[[], tuple[Tensor, ...]] | None = None
    origin: Mapping[str, Any] | None = None

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
    """

    networks: Sequence[Network]
    names: Sequence[str]
    key: Any
    manifest: Manifest
