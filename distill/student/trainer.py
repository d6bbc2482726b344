"""What a distillation method trains: the one interface that the stage drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from pocketfocus.distill.student.samples import Batch
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.sampling import Sampling


class StudentTrainer(nn.Module, ABC):
    """All that one optimizer trains, what it is compared to, and what comes of it.

    Parameters that need no gradient are frozen helpers. `average` holds the EMA of the others by
    name; the training loop keeps it, and a checkpoint holds it.
    """

    result: ClassVar[str] = "student"  # the folder that `save` writes, in that of the run

    def __init__(self) -> None:
        super().__init__()
        self.average: Mapping[str, Tensor] = {}

    def teacher_sampling(self, reference: ReferencePipeline) -> Sampling:
        """Say how teacher stacks are drawn; by default in the reference's own way."""
        return reference.sampling

    def noise(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw what `losses` wants beside one sample's images [1,10,3,H,W]: tensors [1,...]."""
        return ()

    def keep_known(self) -> None:
        """Freeze what a start that has learned knows and should not forget; by default nothing."""

    def hasten(self) -> None:
        """Compile what is worth it in a long training; by default nothing."""

    @abstractmethod
    def losses(self, batch: Batch, *noise: Tensor, pool: int = 1) -> dict[str, Tensor]:
        """Compute named scalars, of which `loss` is minimised, for samples in [-1,1] and `noise` of
        each. Detail finer than `pool` pixels is not compared."""

    @abstractmethod
    def refocus(self, photo: Tensor, position: int, seed: int) -> Tensor:
        """Make the stack [9,3,H,W] in [-1,1] of a photo [1,3,H,W], as the result will make it."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the result, atomically; every process calls this and the main one writes."""
