"""One-step regression with zero noise, in pixels through what ships.

E2E-FT (arXiv 2409.11355) for the task loss at a fixed timestep; DOVE (arXiv 2505.16239) for the
difference of adjacent frames; Any-to-Bokeh (arXiv 2505.21593) for the gradient term. Where a source
tells them, the picture that is sharp everywhere and the distance of every place are learned too;
and, where the photo's position is not given, what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.data.optics import one_hot
from pocketfocus.distill.reference.denoiser import FLOOR
from pocketfocus.distill.student.qat import Files, rounded
from pocketfocus.distill.student.samples import Batch
from pocketfocus.distill.student.trainer import StudentTrainer
from pocketfocus.distill.train.distributed import process_state
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import CELL, COLOURS, Encoded, RefocusStudent, save_student
from pocketfocus.photos.focusmap import box
from pocketfocus.quantize.calibration import calibration
from pocketfocus.quantize.recipes import Recipe
from pocketfocus.run.constants import FRAMES, IMAGES
from pocketfocus.run.metrics import AROUND, SMALLEST_SHARE, detail, is_sharper

EDGE_WEIGHT = ADJACENT_WEIGHT = 0.1
SHARPER_WEIGHT = 0.5
UNKNOWN_SHARE = 0.2  # of samples, whose position is not given
DECIBELS = 10 / math.log(10)


class Made(NamedTuple):
    """What a student makes of photos: images [B,10,3,H,W], dioptres [B,1,H/4,W/4] over 20, and the
    logarithms [B,9] of how likely each position is."""

    images: Tensor
    dioptres: Tensor
    likely: Tensor


class OneStepTrainer(StudentTrainer):
    """A student that makes a stack in one step learns, and is what comes of it."""

    def __init__(self, reference: ReferencePipeline, student: RefocusStudent) -> None:
        super().__init__()
        self.student = student
        student.network.detail.requires_grad_(False)  # no loss here sees it, see `train_detail`
        self.rounded: Files | None = None

    def keep_known(self) -> None:
        """Leave the blocks of the prior as they are: few scenes make them forget what they know of
        pictures in general, and then photos' positions are found less well."""
        prior = self.student.network.prior
        for part in (prior.stem, prior.blocks) if prior is not None else ():
            part.requires_grad_(False)

    def round(self, recipe: Recipe, photos: Sequence[Path] | None) -> None:
        """Call the student through a recipe's files from now on; see `rounded`."""
        inputs = calibration(self.student.photo_size, photos)
        self.rounded = rounded(self.student, recipe, inputs)

    @property
    def call(self) -> Callable[..., tuple[Tensor, ...]]:
        """The student or, rounded, the files that it has to stand."""
        return self.rounded or self.student

    def noise(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw, where it is rounded, the number [1] of the file that computes the sample."""
        if self.rounded is None:
            return ()
        return (torch.randint(len(self.rounded.files), (1,), generator=generator),)

    def made(self, photos: Tensor, places: Tensor, *turn: Tensor) -> Made:
        """What comes of photos [B,3,H,W] at one-hot positions [B,9], as the files give it."""
        stack, sharp, _, dioptres, likely = (x.float() for x in self.call(photos, places, *turn))
        stack = stack.reshape(-1, FRAMES, *photos.shape[1:])
        images = torch.cat([stack, sharp[:, None]], 1)
        return Made(images, dioptres, likely.clamp(min=1e-6).log())

    def refocus(self, photo: Tensor, position: int, seed: int) -> Tensor:
        """Make it in one step, without noise; where it is rounded, through a file by the seed."""
        turn = () if self.rounded is None else (torch.tensor([seed % len(self.rounded.files)]),)
        given = (tensor.to(photo.device) for tensor in (one_hot(position), *turn))
        return self.call(photo, *given)[0]

    def save(self, folder: Path) -> None:
        """Write a student folder, fp16."""
        state = process_state()
        if state.is_main_process:
            save_student(self.student, folder)
        state.wait_for_everyone()


class Regression(OneStepTrainer):
    """The student alone learns; what it makes is not clipped on the way to the loss."""

    def __init__(self, reference: ReferencePipeline, student: RefocusStudent) -> None:
        super().__init__(reference, student)
        self.composed: Callable[..., dict[str, Tensor]] = self._composed

    def hasten(self) -> None:
        """Compile composing and the loss, which saves a quarter of a step on a CPU, and the network
        where it runs on a GPU."""
        self.composed = torch.compile(self._composed, dynamic=False)
        if process_state().device.type == "cuda":
            self.student.network.compile(dynamic=False)

    def noise(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw whether the position is given [1], beside which file computes the sample."""
        given = (torch.rand(1, generator=generator) >= UNKNOWN_SHARE).float()
        return (given, *super().noise(images, generator))

    def losses(self, batch: Batch, *noise: Tensor, pool: int = 1) -> dict[str, Tensor]:
        """Compute what `compared` does."""
        given, *turn = noise
        places = batch.places * given[:, None]
        if self.rounded is not None:
            return compared(self.made(batch.photos, places, *turn), batch, places, pool)
        return self.composed(self.student.network(batch.photos, places), batch, places, pool)

    def _composed(
        self, found: Encoded, batch: Batch, places: Tensor, pool: int
    ) -> dict[str, Tensor]:
        """Compose images of what the network found, and compare them, in full precision."""
        with torch.autocast(found.pixels.device.type, enabled=False):
            found = found.floats()
            change, _ = self.student.compose(batch.photos, found, places)
            change = change.reshape(-1, IMAGES, COLOURS, *change.shape[2:])
            likely = found.position.log_softmax(-1)
            made = Made(batch.photos[:, None] + change, found.dioptres, likely)
            return compared(made, batch, places, pool)


def compared(made: Made, batch: Batch, places: Tensor, pool: int = 1) -> dict[str, Tensor]:
    """Compute pixel, edge and adjacent-frame terms and that of places that get sharper, each the
    log of an image's squared error, the error of nearness, and the cross entropy of positions that
    were not given.

    places [B,9] are one-hot, or zeros where they were not. With `pool` images are first averaged
    over squares of that many pixels, so that finer detail is not compared. The frame at the photo's
    own position is the photo already, and does not count; nor does what a source does not tell.
    All are means over samples of what each of them has.
    """
    mapped = batch.nearness.isfinite()
    counted = torch.cat([1 - batch.places, mapped.all(-1).all(-1).float()], 1)
    mask = counted[:, :, None, None, None]
    error = pooled((made.images - batch.images) * mask, pool)
    pixel = log_error(error, counted)
    edge = log_error(error.diff(dim=-1), counted) + log_error(error.diff(dim=-2), counted)
    steps = error[:, :FRAMES].diff(dim=1)
    adjacent = log_error(steps, torch.ones_like(counted[:, 1:FRAMES]))
    missed = torch.where(mapped, made.dioptres - batch.nearness.nan_to_num(), 0.0).abs().mean()
    unknown, surprise = 1 - places.sum(1), -(made.likely * batch.places).sum(1)
    loss = pixel + EDGE_WEIGHT * edge + ADJACENT_WEIGHT * adjacent
    if pool == 1:
        loss = loss + SHARPER_WEIGHT * log_error_where_sharper(error, batch, counted)
    loss = loss + missed + (surprise * unknown).mean()
    with torch.no_grad():
        copied = pooled((batch.photos[:, None] - batch.images) * mask, pool)
        gains = gain(copied, error) * counted
        mean = (_squared(error) * counted)[:, :FRAMES].sum() / counted[:, :FRAMES].sum()
        expected = made.likely.exp() @ torch.arange(FRAMES).to(made.likely)
        off = ((expected - batch.positions).abs() * unknown).mean() / UNKNOWN_SHARE
        return {
            "loss": loss,
            "gain_db": gains[:, :FRAMES].sum() / counted[:, :FRAMES].sum(),
            "psnr_db": DECIBELS * (4 / mean).log(),
            "sharp_db": gains[:, FRAMES].mean(),
            "nearness_error": missed.detach(),
            "position_error": off,
        }


def gain(copied: Tensor, error: Tensor) -> Tensor:
    """How much less error than by copying [B,I,3,H,W]: [B,I] in dB."""
    return DECIBELS * ((_squared(copied) + 1e-6) / (_squared(error) + 1e-6)).log()


def log_error(error: Tensor, counted: Tensor) -> Tensor:
    """Average log(1 + squared error / FLOOR) over the images [B,I,3,H,W] of each sample that count
    [B,I], and over samples."""
    return (((_squared(error) / FLOOR).log1p() * counted).sum(1) / counted.sum(1)).mean()


def log_error_where_sharper(error: Tensor, batch: Batch, counted: Tensor) -> Tensor:
    """Average, as `log_error` does, of the cells of each image [B,I,3,H,W] that get sharper alone.

    A fifth of a real image's places are such, and half of what is left of its error. They are those
    of `metrics.sharper_places`, of the mean colour and in whole cells; images that have hardly any
    do not count.
    """
    squared = F.avg_pool2d(error.square().mean(2), CELL)
    with torch.no_grad():
        wanted, own = (_detail(x) for x in (batch.images.mean(2), batch.photos.mean(1, True)))
        places = is_sharper(own, wanted).float()
        share = places.mean((-1, -2))
        counted = counted * (share >= SMALLEST_SHARE)
    errors = (squared * places).mean((-1, -2)) / share.clamp(min=SMALLEST_SHARE)
    return (((errors / FLOOR).log1p() * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()


def _detail(images: Tensor) -> Tensor:
    """How much detail there is around the cells of images [B,I,H,W], [B,I,H/4,W/4]."""
    return box(F.avg_pool2d(detail(images).abs(), CELL), AROUND // CELL // 2)


def _squared(error: Tensor) -> Tensor:
    """Average the square of [B,I,3,H,W] to [B,I]."""
    return error.square().mean((-1, -2, -3))


def pooled(stacks: Tensor, pool: int) -> Tensor:
    """Average over `pool` x `pool` pixels: [...,H,W] -> [...,H/pool,W/pool]."""
    if pool == 1:
        return stacks
    smaller = F.avg_pool2d(stacks.flatten(0, -4), pool)
    return smaller.reshape(*stacks.shape[:-2], *smaller.shape[-2:])
