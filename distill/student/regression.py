"""One-step regression with zero noise, in pixels through what ships.

E2E-FT (arXiv 2409.11355) for the task loss at a fixed timestep; DOVE (arXiv 2505.16239) for the
difference of adjacent frames; Any-to-Bokeh (arXiv 2505.21593) for the gradient term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.data.optics import one_hot
from pocketfocus.distill.reference.denoiser import FLOOR
from pocketfocus.distill.student.qat import Files, rounded
from pocketfocus.distill.student.trainer import StudentTrainer
from pocketfocus.distill.train.distributed import process_state
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import RefocusStudent, save_student
from pocketfocus.quantize.calibration import calibration
from pocketfocus.quantize.recipes import Recipe
from pocketfocus.run.constants import FRAMES

EDGE_WEIGHT = ADJACENT_WEIGHT = 0.1


class OneStepTrainer(StudentTrainer):
    """A student that makes a stack in one step learns, and is what comes of it."""

    def __init__(self, reference: ReferencePipeline, student: RefocusStudent) -> None:
        super().__init__()
        self.student = student
        for told in (student.network.dioptres, student.network.position):
            told.requires_grad_(False)  # no stack teaches what only tells of the photo
        self.rounded: Files | None = None

    def round(self, recipe: Recipe, photos: Sequence[Path] | None) -> None:
        """Call the student through a recipe's files from now on; see `rounded`."""
        inputs = calibration(self.student.photo_size, photos)
        self.rounded = rounded(self.student, recipe, inputs)

    @property
    def call(self) -> Callable[..., Tensor]:
        """The student or, rounded, the files that it has to stand."""
        return self.rounded or self.student.stack

    def noise(self, stack: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw, where it is rounded, the number [1] of the file that computes the sample."""
        if self.rounded is None:
            return ()
        return (torch.randint(len(self.rounded.files), (1,), generator=generator),)

    def made(self, photos: Tensor, positions: Tensor, stacks: Tensor, *turn: Tensor) -> Tensor:
        """Make the student's stacks, of the shape [B,9,3,H,W] of `stacks`."""
        places = F.one_hot(positions, FRAMES).float()
        stack: Tensor = self.call(photos, places, *turn)
        return stack.float().reshape(stacks.shape)

    def refocus(self, photo: Tensor, position: int, seed: int) -> Tensor:
        """Make it in one step, without noise; where it is rounded, through a file by the seed."""
        turn = () if self.rounded is None else (torch.tensor([seed % len(self.rounded.files)]),)
        return self.call(photo, one_hot(position), *turn)

    def save(self, folder: Path) -> None:
        """Write a student folder, fp16."""
        state = process_state()
        if state.is_main_process:
            save_student(self.student, folder)
        state.wait_for_everyone()


class Regression(OneStepTrainer):
    """The student alone learns."""

    def losses(
        self, photos: Tensor, positions: Tensor, stacks: Tensor, *noise: Tensor, pool: int = 1
    ) -> dict[str, Tensor]:
        """Compute `stack_losses`."""
        made = self.made(photos, positions, stacks, *noise)
        return stack_losses(made, photos, positions, stacks, pool)


def stack_losses(
    made: Tensor, photos: Tensor, positions: Tensor, stacks: Tensor, pool: int = 1
) -> dict[str, Tensor]:
    """Compute pixel, edge and adjacent-frame terms, each the log of a frame's squared error.

    photos [B,3,H,W], positions [B], stacks that were made and true ones [B,9,3,H,W]; all in
    [-1,1]. With `pool` both sides are first averaged over squares of that many pixels, so that
    finer detail is not compared. The frame at the photo's own position is the photo already, and
    does not count.
    """
    copies = photos[:, None].expand_as(stacks)
    made, stacks, copies = (pooled(stack, pool) for stack in (made, stacks, copies))
    others, squared = 1 - F.one_hot(positions, FRAMES).float(), _squared(made - stacks)
    error = made - stacks
    edge = sum(_log(_squared(error.diff(dim=d)), others) for d in (-1, -2))
    adjacent = _log(_squared(error.diff(dim=1)), torch.ones_like(others[:, 1:]))
    pixel = _log(squared, others)
    loss = pixel + EDGE_WEIGHT * edge + ADJACENT_WEIGHT * adjacent
    decibels = 10 / math.log(10)
    gain = decibels * (_log(_squared(copies - stacks), others) - pixel)
    mean = (squared * others).sum() / others.sum()
    return {"loss": loss, "gain_db": gain.detach(), "psnr_db": 10 * torch.log10(4 / mean.detach())}


def _squared(error: Tensor) -> Tensor:
    """Average the square of [B,T,3,H,W] to [B,T]."""
    return error.square().mean((-1, -2, -3))


def _log(squared: Tensor, counted: Tensor) -> Tensor:
    """Average log(1 + squared / FLOOR) over the frames that count."""
    return ((squared / FLOOR).log1p() * counted).sum() / counted.sum()


def pooled(stacks: Tensor, pool: int) -> Tensor:
    """Average over `pool` x `pool` pixels: [...,H,W] -> [...,H/pool,W/pool]."""
    smaller = F.avg_pool2d(stacks.flatten(0, -4), pool)
    return smaller.reshape(*stacks.shape[:-2], *smaller.shape[-2:])
