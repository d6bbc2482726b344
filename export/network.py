"""What is exported: a network, its inputs and outputs, and real calls to calibrate it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pocketfocus.data.optics import FRAMES
from pocketfocus.quantize.calibration import Calibration
from pocketfocus.quantize.layers import Weighted, capture, execution_order
from pocketfocus.run.manifest import TensorSpec

STUDENT = "student"
INPUT_NAMES = ("photo", "position")
OUTPUT_NAME = "stack"

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


def student_network(folder: Path, size: tuple[int, int], inputs: Calibration) -> Network:
    """The student of a folder, whose files take photos of `size` (H, W)."""
    from pocketfocus.models.student import load_student

    return Network(
        STUDENT,
        partial(load_student, folder),
        (
            TensorSpec(INPUT_NAMES[0], (1, 3, *size), "float32", (-1.0, 1.0)),
            TensorSpec(INPUT_NAMES[1], (1, FRAMES), "float32", (0.0, 1.0)),
        ),
        (TensorSpec(OUTPUT_NAME, (FRAMES, 3, *size), "float32", (-1.0, 1.0)),),
        lambda: list(inputs),
    )
