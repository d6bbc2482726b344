"""Images of an analysed photo at its own size, at any focus and aperture: `Render` and its tiles.

What the student adds to a photo is known at the size of the analysis and varies smoothly; the
photo brings the detail. An image is the photo, plus that addition enlarged, plus a gain times what
in the photo is finer than the analysis. Images between two frames, or of another aperture, are
sums of these additions, for they are linear in them.

Legend: H, W size of a tile of the photo, h, w of the part of the analysis that it lies in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfocus.models.student import COLOURS, Analysis
from pocketfocus.run.constants import FRAMES, IMAGES, Size
from pocketfocus.run.errors import UserError

LARGEST_APERTURE = 2.0
TILE = 256  # pixels of the photo on a side, that an exported file makes at once
PART = 96  # of the analysis that it takes from: all that TILE needs from 1 megapixel on


class Feeds(NamedTuple):
    """What an image, or a tile of one, is made of.

    Attributes:
        photo: the tile [1,3,H,W] in [-1,1].
        small: [1,3,h,w] in [-1,1], the photo at the size of the analysis, the part in which the
            tile lies.
        images: [10,3,h,w] in [-1,1], the nine frames from near to far and the sharp picture there.
        detail: [1,10,h,w], their gains.
        focus: [1,9], weights of the focal positions, of sum 1, one-hot or two neighbours.
        aperture: [1,1], 0 for sharp everywhere, 1 for the phone's own, up to 2.
        rows, columns: [1,H,h] and [1,w,W], how much of each row and column of the analysis one of
            the tile takes, see `taps`.
    """

    photo: Tensor
    small: Tensor
    images: Tensor
    detail: Tensor
    focus: Tensor
    aperture: Tensor
    rows: Tensor
    columns: Tensor


FIXED: tuple[tuple[int, ...], ...] = (
    (1, COLOURS, TILE, TILE),
    (1, COLOURS, PART, PART),
    (IMAGES, COLOURS, PART, PART),
    (1, IMAGES, PART, PART),
    (1, FRAMES),
    (1, 1),
    (1, TILE, PART),
    (1, PART, TILE),
)
"""The shapes of `Feeds` that an exported file takes, for photos and analyses of any size."""


class Render(nn.Module):
    """Make an image, or a tile of one, at the photo's own size, of `Feeds`: [1,3,H,W] in [-1,1]."""

    def forward(self, *given: Tensor) -> Tensor:
        photo, small, images, detail, focus, aperture, rows, columns = given
        height, width = small.shape[-2:]
        weights = torch.cat([focus * aperture, 1.0 - aperture], 1).reshape(1, 1, IMAGES)
        image = torch.bmm(weights, images.reshape(1, IMAGES, -1)).reshape(1, COLOURS, height, width)
        gain = torch.bmm(weights, detail.reshape(1, IMAGES, -1)).reshape(1, 1, height, width)
        planes = torch.cat([image - small - gain * small, gain], 1)
        # All planes in one product each way: XNNPACK does not repeat a factor for each of them.
        planes = torch.bmm(rows, planes.permute(2, 0, 1, 3).reshape(1, height, -1))
        planes = planes.reshape(-1, COLOURS + 1, width).permute(1, 0, 2)  # [4,H,w]
        planes = torch.bmm(planes.reshape(1, -1, width), columns)
        planes = planes.reshape(1, COLOURS + 1, *photo.shape[-2:])
        made = photo + planes[:, :COLOURS] + photo * planes[:, COLOURS:]
        return made.clamp(-1.0, 1.0)


def padded(feeds: Feeds) -> Feeds:
    """The same in the shapes that an exported file takes, with zeros below and to the right.

    The image of the tile is then the upper left part of what the file makes. ValueError for a tile
    or a part of the analysis that is larger; see `tiles_along`.
    """
    made = []
    for name, tensor, shape in zip(Feeds._fields, feeds, FIXED, strict=True):
        below, right = (full - own for full, own in zip(shape[-2:], tensor.shape[-2:], strict=True))
        if min(below, right) < 0:
            raise ValueError(f"{name} is {list(tensor.shape)}, a file takes {list(shape)} at most")
        made.append(F.pad(tensor, (0, right, 0, below)))
    return Feeds(*made)


@dataclass(frozen=True)
class Span:
    """Part of a row or column of the photo, and where it lies in the analysis.

    Attributes:
        start, stop: pixels of the photo.
        low, high: pixels of the analysis that these take from, bilinearly.
    """

    start: int
    stop: int
    low: int
    high: int


def span_of(start: int, stop: int, full: int, small: int) -> Span:
    """The span of pixels start..stop-1 of `full`, which were analysed as `small`."""
    scale = small / full
    low = max(0, math.floor((start + 0.5) * scale - 0.5))
    high = min(small, max(0, math.floor((stop - 0.5) * scale - 0.5)) + 2)
    return Span(start, stop, min(low, small - 1), high)


def tiles_along(full: int, small: int) -> list[Span]:
    """Cut `full` pixels, which were analysed as `small`, into spans that an exported file takes:
    of at most `TILE` pixels, which lie in at most `PART` of the analysis. None overlaps."""
    step = min(TILE, (PART - 2) * full // small)
    return [span_of(start, min(start + step, full), full, small) for start in range(0, full, step)]


def taps(span: Span, full: int, small: int) -> Tensor:
    """How much of each pixel low..high-1 of the analysis every pixel start..stop-1 takes: bilinear,
    [stop-start, high-low], rows of sum 1."""
    centres = (torch.arange(span.start, span.stop, dtype=torch.float64) + 0.5) * small / full - 0.5
    centres = centres.clamp(0, small - 1)
    places = torch.arange(span.low, span.high, dtype=torch.float64)
    return (1 - (centres[:, None] - places).abs()).clamp(min=0).float()


def focus_weights(focus: float) -> Tensor:
    """Weights [1,9] of the focal positions for one from 0.0 (5 cm) to 8.0 (infinity), a number
    between two by their distance; UserError for others."""
    if not 0 <= focus <= FRAMES - 1:
        raise UserError(
            f"focus {focus:g} is outside 0..{FRAMES - 1}: give a number from 0 (near, 5 cm) to "
            f"{FRAMES - 1} (infinity)"
        )
    return (1 - (torch.arange(float(FRAMES)) - focus).abs()).clamp(min=0)[None]


def aperture_of(aperture: float) -> Tensor:
    """An aperture [1,1], 0 for sharp everywhere, 1 for the phone's own; UserError for others than
    0..2."""
    if not 0 <= aperture <= LARGEST_APERTURE:
        raise UserError(
            f"aperture {aperture:g} is outside 0..{LARGEST_APERTURE:g}: give 0 for sharp "
            f"everywhere, 1 for the phone's own, at most {LARGEST_APERTURE:g}"
        )
    return torch.tensor([[float(aperture)]])


@dataclass(frozen=True)
class Analysed:
    """A photo's analysis, of which tiles are rendered.

    Attributes:
        small: the photo [1,3,h,w] in [-1,1] that was analysed, edges included.
        analysis: what the student said of it.
        size: (h, w) of that part of it that is the whole photo; what else there is was added to
            make its sides multiples.
    """

    small: Tensor
    analysis: Analysis
    size: tuple[int, int]

    def render(
        self,
        tile: Tensor,
        focus: Tensor,
        aperture: Tensor,
        spans: tuple[Span, Span] | None = None,
        full: tuple[int, int] | None = None,
        exact: bool = True,
    ) -> Tensor:
        """An image of a tile [1,3,H,W]: [1,3,H,W]; without spans, the tile is the whole photo.

        Products are summed in float64 if that is to be `exact`: in which order depends on a tile's
        size, and tiles are the whole to the last bit. In float32 it takes half as long, and what
        differs is far below a step of 16 bits.
        """
        kind = torch.float64 if exact else torch.float32
        feeds = self.feeds(tile, focus, aperture, spans, full)
        made: Tensor = Render()(*(tensor.to(kind) for tensor in feeds))
        return made.float()

    def feeds(
        self,
        tile: Tensor,
        focus: Tensor,
        aperture: Tensor,
        spans: tuple[Span, Span] | None = None,
        full: tuple[int, int] | None = None,
    ) -> Feeds:
        """What `Render` takes for that image of a tile."""
        height, width = full or tile.shape[-2:]
        if spans is None:
            spans = span_of(0, height, height, self.size[0]), span_of(0, width, width, self.size[1])
        rows, columns = spans
        part = (..., slice(rows.low, rows.high), slice(columns.low, columns.high))
        return Feeds(
            photo=tile,
            small=self.small[part],
            images=torch.cat([self.analysis.stack[part], self.analysis.sharp[part]]),
            detail=self.analysis.detail[part],
            focus=focus,
            aperture=aperture,
            rows=taps(rows, height, self.size[0])[None],
            columns=taps(columns, width, self.size[1]).T[None],
        )


Place = tuple[slice, slice]
"""Rows and columns of the photo that a tile has."""


def cut(
    analysed: Analysed, photo: Tensor, focus: Tensor, aperture: Tensor
) -> Iterator[tuple[Place, Feeds]]:
    """Cut an analysed photo [1,3,H,W] into tiles as an exported file takes them, row by row."""
    full: Size = (photo.shape[-2], photo.shape[-1])
    down, across = (tiles_along(*sides) for sides in zip(full, analysed.size, strict=True))
    for rows, columns in product(down, across):
        place = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        feeds = analysed.feeds(photo[(..., *place)], focus, aperture, (rows, columns), full)
        yield place, padded(feeds)
