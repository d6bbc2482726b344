"""True focal stacks that models are scored on, and which of their frames are the truth for what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from pocketfocus.benchmarks.focus_accuracy import patches
from pocketfocus.data.datasets import SYNTHETIC, TEST, Request, open_source
from pocketfocus.data.scenes import VALIDATION_SEED, held_out_photos
from pocketfocus.data.stacks import FocalStack, RenderedScenes, Source, StackCache, cache_sources
from pocketfocus.models.model import resized
from pocketfocus.photos.registration import farthest_px, motion
from pocketfocus.run.constants import FRAMES, Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.metrics import sharper_places
from pocketfocus.run.telemetry import cache_home

TOLERANCE = 0.25  # a frame this far from a whole position still is the truth for it
SCENES, RENDERED = 64, (256, 256)
LOOKED_AT, MATTERS = 4, 1e-3  # stacks whose motion is measured, and of the shorter side


def frames_by_position(stack: FocalStack) -> dict[int, Tensor]:
    """Return the frames [1, 3, H, W] that are truth for a whole position, by position.

    The truth for a position is the frame nearest to it, the nearer one of two equals, if it is
    within `TOLERANCE`; frames between positions are not used.
    """
    found: dict[int, Tensor] = {}
    for position in range(FRAMES):
        distances = [abs(at - position) for at in stack.positions]
        nearest = distances.index(min(distances))
        if distances[nearest] <= TOLERANCE:
            found[position] = stack.frames[nearest : nearest + 1]
    return found


@dataclass(frozen=True, eq=False)
class Truth:
    """A scene's true frames, and what is found in them, once for all models.

    Attributes:
        frames: by position, [1, 3, H, W] in [-1, 1].
        size: at which images are compared; None for their own.
    """

    frames: Mapping[int, Tensor]
    size: Size | None = None
    _places: dict[tuple[int, int], Tensor | None] = field(default_factory=dict)

    @cached_property
    def compared(self) -> dict[int, Tensor]:
        """The frames at the size at which they are compared."""
        return {position: self.at_size(frame) for position, frame in self.frames.items()}

    @cached_property
    def focus(self) -> Tensor:
        """How sharp the patches of these are (`focus_accuracy.patches`)."""
        return patches(torch.cat(list(self.compared.values())))

    def at_size(self, images: Tensor) -> Tensor:
        """Scale images of this scene to the size at which they are compared."""
        return images if self.size is None else resized(images, self.size)

    def sharper(self, position: int, output: int) -> Tensor | None:
        """Return the `sharper_places` of an output, of the photo of a position."""
        key = position, output
        if key not in self._places:
            self._places[key] = sharper_places(*(self.compared[at] for at in key))
        return self._places[key]


def validation_stacks(scenes: int = SCENES, size: Size = RENDERED) -> StackCache:
    """Return synthetic validation scenes with the held-out photos, rendered once and kept for later
    runs.

    They lie under `cache_home()`; UserError when that folder cannot be written.
    """
    sides = "-".join(map(str, dict.fromkeys(size)))
    folder = cache_home() / f"validation-{sides}-{scenes}"
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + scenes)
    try:
        return cache_sources(folder, [RenderedScenes(seeds, size, held_out_photos())], size)
    except UserError as error:
        if error.__cause__ is None:  # the folder is sound: another process renders there
            raise
        megabytes = scenes * FRAMES * 3 * size[0] * size[1] / 1e6
        raise UserError(
            f"{folder} cannot keep the rendered validation scenes ({error.__cause__ or error}): "
            f"set XDG_CACHE_HOME to a folder that can be written, with {megabytes:.0f} MB free"
        ) from error


class FirstStacks(Iterable[FocalStack]):
    """The first stacks of a source, read or rendered one by one, each time they are gone through:
    one of frames of 12 megapixels takes over a gigabyte. `len` is how many they are at most."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count = source, count

    def __len__(self) -> int:
        return min(self.count, len(self.source.names))

    def __iter__(self) -> Iterator[FocalStack]:
        return islice(self.source, self.count)


def true_stacks(
    source: str, scenes: int, size: Size | None, register: bool = False
) -> tuple[StackCache | FirstStacks, str]:
    """Return the test stacks of a source, at most `scenes` of them, and the hash they are known by.

    A folder's images keep their size unless one is given; the others are 256 by 256. Its frames are
    first moved onto each other if they are to be registered.
    """
    opened = open_source(source, Request(scenes, size, TEST, crop=False, register=register))
    if source == SYNTHETIC:
        return validation_stacks(scenes, size or RENDERED), opened.key
    return FirstStacks(opened, scenes), opened.key


def note_of_motion(stacks: Iterable[FocalStack]) -> str | None:
    """Say by how much the frames of some stacks move against each other, in the median of the first
    few; None where it is nothing that matters."""
    far, shorter = [], []
    for stack in islice(stacks, LOOKED_AT):
        size = (stack.frames.shape[-2], stack.frames.shape[-1])
        far.append(farthest_px(motion(stack.frames, stack.aspect), size, stack.aspect))
        shorter.append(min(size))
    if not far or median(far) < MATTERS * median(shorter):
        return None
    return (
        f"note: frames move against each other by {median(far):.1f} pixels as the lens focuses, "
        "which no model can know: --register undoes it first"
    )


def source_name(source: str) -> str:
    """Return what tables call a source of stacks: the name of a folder, else the source itself."""
    return Path(source).resolve().name if Path(source).is_dir() else source
