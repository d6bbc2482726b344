"""Analyse a photo of any size and shape with a student or its file, for images at its own size.

The photo keeps its proportions: it is scaled to about as many pixels as the student was made for,
or into the nearest of a file's sizes, and its edges are repeated to what the network takes. A
smaller one is enlarged: a student knows what a focal step does to pictures of the size it learned
from. Legend: H, W of the photo, h, w of the photo as it is analysed, edges included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.data.optics import one_hot
from pocketfocus.models.render import Analysed, Span, taps
from pocketfocus.models.student import CELL, COLOURS, Analysis
from pocketfocus.run.constants import FRAMES, IMAGES, Size, check_position
from pocketfocus.run.errors import UserError

ROWS = 16  # of a matrix that are made at a time, in twice its precision


@dataclass(frozen=True)
class Fit:
    """How a photo gets into a network.

    Attributes:
        size: (H, W) that it is scaled to.
        padded: (h, w) that it is brought to by repeating its last row and column.
        transposed: whether rows and columns change places for the network: a portrait photo for a
            file of landscape ones.
    """

    size: Size
    padded: Size
    transposed: bool = False


@dataclass(frozen=True)
class Analyser:
    """A network that analyses photos: `call(photo [1,3,h,w], position [1,9])` gives an `Analysis`.

    Attributes:
        name: what errors call it.
        sizes: the (h, w) that it takes; none for all whose sides are multiples of `multiple`.
        pixels: about how many it was made for, where it takes all sizes.
        self_ensemble: whether a photo is analysed twice, once mirrored, and the mean is taken: the
            geometric self-ensemble of EDSR (arXiv 1707.02921, section 3.3), its flip alone, as
            scenes have an above and a below.
    """

    name: str
    call: Callable[[Tensor, Tensor], Sequence[Tensor]]
    sizes: tuple[Size, ...] = ()
    multiple: int = 1
    pixels: int = 0
    self_ensemble: bool = False

    def fit(self, photo: Size) -> Fit:
        """How a photo of (H, W) gets in: where most of it is left, and upright if it can."""
        if not self.sizes:
            size = _scaled(photo, math.sqrt(self.pixels / math.prod(photo)))
            height, width = (side + -side % self.multiple for side in size)
            return Fit(size, (height, width))
        fits = []
        for size in self.sizes:
            for padded, transposed in ((size, False), (size[::-1], True)):
                scale = min(room / side for room, side in zip(padded, photo, strict=True))
                fits.append(Fit(_scaled(photo, scale), padded, transposed))
        # the most pixels of the photo, then the fewest of its edges
        return max(fits, key=lambda f: (math.prod(f.size), -math.prod(f.padded), not f.transposed))

    @torch.inference_mode()
    def analyse(
        self, small: Tensor, fit: Fit, position: int | None, scene: str = "the photo"
    ) -> Analysed:
        """The analysis of a photo [1,3,*fit.size] in [-1,1], taken at a focal position, None where
        that is not known.

        `scene` is what errors call it. UserError for a position that is none, and for a network
        that gives other shapes or values that are not finite.
        """
        small = _padded(small, fit.padded)
        found = self._called(small, fit, position, scene)
        if self.self_ensemble:
            mirrored = self._called(small.flip(-1), fit, position, scene)
            pairs = zip(found, _turned(mirrored, lambda picture: picture.flip(-1)), strict=True)
            found = Analysis(*((one + other) / 2 for one, other in pairs))
        return Analysed(small, found, fit.size)

    def _called(self, small: Tensor, fit: Fit, position: int | None, scene: str) -> Analysis:
        given = torch.zeros(1, FRAMES) if position is None else one_hot(position)
        found = self.call((small.mT if fit.transposed else small).contiguous(), given)
        if fit.transposed:
            found = _turned(found, lambda picture: picture.mT)
        return self._checked(found, fit.padded, scene, position)

    def _checked(
        self, found: Sequence[Tensor], size: Size, scene: str, position: int | None
    ) -> Analysis:
        height, width = size
        cells = (height // CELL, width // CELL)
        shapes: list[tuple[int, ...]] = [(FRAMES, COLOURS, *size), (1, COLOURS, *size)]
        shapes += [(1, IMAGES, *size), (1, 1, *cells), (1, FRAMES)]
        given = [tuple(value.shape) for value in found]
        if given != shapes:
            raise UserError(
                f"{self.name} gives {given}, an analysis of {shapes} is needed: export it again, "
                "or name another model"
            )
        analysis = Analysis(*(value.float().cpu() for value in found))
        if not all(bool(value.isfinite().all()) for value in analysis):
            where = "unknown" if position is None else position
            raise UserError(
                f"{self.name} makes values that are not finite from {scene}, position {where}: try "
                "another precision, or leave it out"
            )
        return analysis

    def analyse_whole(
        self,
        photo: Tensor,
        position: int | None,
        scene: str = "the photo",
        aspect: float | None = None,
    ) -> tuple[Analysed, Size]:
        """The analysis of a photo [1,3,H,W] in [-1,1] that is not scaled yet, and its (H, W); a
        position of None stands for an unknown one.

        A photo that was squeezed is analysed in the proportions that the lens saw, of which
        `aspect` is the width over the height; images of it are squeezed as it is.
        """
        if position is not None:
            check_position(position)
        height, width = photo.shape[-2:]
        fit = self.fit((height, width) if aspect is None else _seen((height, width), aspect))
        return self.analyse(averaged(photo, fit.size), fit, position, scene), (height, width)


def _seen(size: Size, aspect: float) -> Size:
    """The largest (H, W) of these proportions that enlarges neither side."""
    height, width = size
    return min(height, round(width / aspect)), min(width, round(height * aspect))


def likely_position(analysis: Analysis) -> tuple[int, float]:
    """The focal position of a photo that was analysed without one, and how likely it is to be that
    or one beside it, 0..1: the median, whose expected error is least."""
    chances = analysis.positions[0].double()
    position = int(median_position(chances))
    near = chances[max(0, position - 1) : position + 2].sum() / chances.sum()
    return position, float(near)


def median_position(chances: Tensor) -> Tensor:
    """The median [...] of focal positions that are as likely as chances [...,9], of any sum."""
    half = chances.sum(-1, keepdim=True) / 2
    return (chances.cumsum(-1) < half).sum(-1).clamp(max=FRAMES - 1)


def averaged(photo: Tensor, size: Size) -> Tensor:
    """Scale [B,C,H,W] to `size`: every pixel is the mean of the area that it covers, or where there
    are more pixels than before, what lies there bilinearly."""
    if tuple(photo.shape[-2:]) == size:
        return photo
    rows, columns = (areas(full, small) for full, small in zip(photo.shape[-2:], size, strict=True))
    return rows @ photo @ columns.T


def areas(full: int, small: int) -> Tensor:
    """How much of each of `full` pixels each of `small` ones takes: [small, full], rows of sum 1.
    It is what they cover, or of two neighbours, where there are more of these."""
    if small > full:
        return taps(Span(0, small, 0, full), small, full)
    width = full / small
    pixel, made = torch.arange(full, dtype=torch.float64), torch.empty(small, full)
    for first in range(0, small, ROWS):
        last = min(first + ROWS, small)
        start = torch.arange(first, last, dtype=torch.float64)[:, None] * width
        overlap = torch.minimum(start + width, pixel + 1).sub_(torch.maximum(start, pixel))
        made[first:last] = overlap.clamp_(min=0).div_(width)
    return made


def _padded(photo: Tensor, size: Size) -> Tensor:
    below, beside = (room - side for room, side in zip(size, photo.shape[-2:], strict=True))
    return F.pad(photo, (0, beside, 0, below), mode="replicate") if below or beside else photo


def _turned(values: Sequence[Tensor], turn: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Pictures [B,C,H,W] turned; what has no places stays."""
    return [turn(value) if value.ndim == 4 else value for value in values]


def _scaled(photo: Size, scale: float) -> Size:
    height, width = (max(1, round(side * scale)) for side in photo)
    return height, width
