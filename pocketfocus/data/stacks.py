"""Focal stacks behind one interface: rendered, read from folders, or cached on disk.

Legend: N frames of a stack (9 unless its folder says otherwise), H, W; S stacks in a cache.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pocketfocus.data.scenes import Photos, render_scene
from pocketfocus.data.sizing import near, sized
from pocketfocus.photos.images import (
    BROKEN,
    FORMATS,
    check_photo,
    from_uint8,
    is_photo,
    load_photo,
    size_of,
    to_uint8,
)
from pocketfocus.photos.registration import VERSION, registered
from pocketfocus.run.cache import Kept
from pocketfocus.run.child import end_with_parent
from pocketfocus.run.constants import FRAMES, IMAGES, POSITIONS, Size, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import alone_in, key_of, one_line, reserve, sha256, write_atomic
from pocketfocus.run.processes import cores
from pocketfocus.run.progress import say, track

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".bmp"),
    *(".jp2", ".gif"),
)
NAMED = 5  # broken photos or missing scenes, before they are only counted
POSITIONS_FILE = "positions.txt"
RIG_PATTERN = "midsize/undistorted/RigCenter*"
RIG_ASPECT = 3 / 4  # of a phone's photos, which that data set squeezes to 5:7 (docs/realism.md)
LAYOUT = (
    f"expected a folder per scene with {FRAMES} images named in order near to far, or 2 or more "
    f"and a {POSITIONS_FILE} with a number 0..{FRAMES - 1} a line, or SCENE/{RIG_PATTERN}/"
)
CACHE_VERSION = 8  # to be raised when rendering changes: older caches are then rendered anew
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # of EXIF, and its values that swap the sides
DEPTH_CELL = 4  # pixels a side of one value of a map of dioptres
GATHERING_S = 600.0  # for which another process that fills the same cache is waited for
WORTH_SHARING = 24  # rendered stacks: fewer are made before other processes have started


@dataclass(frozen=True)
class FocalStack:
    """One scene: frames [N, 3, H, W] sRGB in [-1, 1] at ascending focal positions in [0, 8].

    Where they are known, `sharp` [3, H, W] is the picture that is sharp everywhere, and `dioptres`
    [H/4, W/4] those of its places. `aspect` is the width over the height of what the lens saw,
    from which frames may have been squeezed; None where they have its proportions.
    """

    name: str
    frames: Tensor
    positions: tuple[float, ...]
    sharp: Tensor | None = None
    dioptres: Tensor | None = None
    aspect: float | None = None


class Source(ABC):
    """Numbered focal stacks that a cache is filled from.

    Attributes:
        names: of the stacks.
        rendered: whether it may be copied into other processes to load there.
    """

    names: Sequence[str]
    rendered = False

    @property
    @abstractmethod
    def key(self) -> str:
        """Hash of all that the pixels depend on."""

    @abstractmethod
    def load(self, index: int) -> FocalStack | None:
        """Load one stack; None for one that turns out to be broken, which was said."""

    def __iter__(self) -> Iterator[FocalStack]:
        stacks = (self.load(index) for index in range(len(self.names)))
        yield from (stack for stack in stacks if stack is not None)


@dataclass(frozen=True)
class _Scene:
    name: str
    images: tuple[Path, ...]
    positions: tuple[float, ...]
    aspect: float | None  # that the lens saw; None where it is the images' own


class _SceneError(Exception):
    """Why one scene of a folder cannot be used."""


def say_skipped(scene: str, reason: str) -> None:
    """Tell on standard error that a scene is not used."""
    say(f"warning: scene {scene} skipped: {reason}")


class StackFolder(Source):
    """The usable stacks of a folder: 9 images a scene, images and positions.txt, or a RigCenter.

    `len` counts scenes whose files are listed in order; one whose images turn out to be broken is
    skipped, with a message, when it is reached, and is then no longer counted. `names` are those
    listed at first, in natural order; `skipped` maps a scene to the reason. UserError, naming the
    folder and the layout, when nothing in it is usable.

    Args:
        folder: holds a folder per scene.
        size: to resize to with Pillow's Lanczos filter, None to leave images as they are.
        only: names of the scenes to use, None for all.
        crop: keep proportions, cutting off what the size does not hold.
        register: undo how frames move against each other (`photos.registration`).
    """

    def __init__(
        self,
        folder: Path,
        size: Size | None = None,
        only: Collection[str] | None = None,
        crop: bool = False,
        register: bool = False,
    ) -> None:
        self.folder, self.size, self.crop = Path(folder), size, crop
        self.register = register
        self.skipped: dict[str, str] = {}
        self._scenes: list[_Scene] = []
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder: {LAYOUT}")
        for scene in sorted((p for p in self.folder.iterdir() if p.is_dir()), key=natural_key):
            if only is not None and scene.name not in only:
                continue
            try:
                self._scenes.append(_list_scene(scene))
            except _SceneError as reason:
                self._skip(scene.name, str(reason))
        self._demand_some()
        self.names = tuple(scene.name for scene in self._scenes)

    @cached_property
    def key(self) -> str:
        """Hash of the names, content, positions and proportions of all images, and of how they are
        read."""
        files = [
            [image.relative_to(self.folder).as_posix(), content_of(image), at, scene.aspect]
            for scene in self._scenes
            for image, at in zip(scene.images, scene.positions, strict=True)
        ]
        moved = {"registered": VERSION} if self.register else {}
        return key_of(files=files, size=list(self.size or ()), crop=self.crop, **moved)

    def __len__(self) -> int:
        return sum(scene.name not in self.skipped for scene in self._scenes)

    def __iter__(self) -> Iterator[FocalStack]:
        yield from super().__iter__()
        self._demand_some()

    def sizes(self) -> Iterator[tuple[Path, Size]]:
        """Return the size of every image as its file's head says; of broken files none."""
        for scene in self._scenes:
            for path in scene.images:
                with suppress(*BROKEN), Image.open(path, formats=FORMATS) as image:
                    turned = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
                    height, width = size_of(image)
                    yield path, (width, height) if turned else (height, width)

    def load(self, index: int) -> FocalStack | None:
        """Read one stack; a broken one is said to be skipped, once, and is None."""
        scene = self._scenes[index]
        if scene.name in self.skipped:
            return None
        try:
            frames, aspect = _read_frames(scene, self.size, self.crop, self.register)
        except _SceneError as reason:
            self._skip(scene.name, str(reason))
            return None
        return FocalStack(scene.name, frames, scene.positions, aspect=aspect)

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        say_skipped(name, reason)

    def _demand_some(self) -> None:
        if len(self) == 0:
            also = f" ({len(self.skipped)} skipped)" if self.skipped else ""
            raise UserError(f"{self.folder} holds no usable focal stack{also}: {LAYOUT}")


def read_photos(folder: Path) -> list[Path]:
    """Return the photos of a folder in natural order, known by their content; UserError when there
    are none.

    Those that cannot be read are left out, saying so.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that holds photos")
    entries = (p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
    photos, broken = [], []
    for path in sorted(entries, key=natural_key):
        if path.suffix.lower() not in IMAGE_SUFFIXES and not is_photo(path):
            continue
        try:
            check_photo(path)
            photos.append(path)
        except UserError as error:
            broken.append(str(error))
    for reason in broken[:NAMED]:
        say(f"warning: {reason}")
    if broken:
        left_out = f"{len(broken)} of {len(photos) + len(broken)} photos in {folder}"
        say(f"warning: {left_out} cannot be read and are left out")
    if not photos:
        raise UserError(f"{folder} holds no photo that can be read: put JPEG or PNG files into it")
    return photos


def content_of(path: Path) -> str:
    """Return a hash of a file's content, "" of one that cannot be read: its size and times would
    not tell one depth map from another, or a copy of a folder from another folder."""
    try:
        return sha256(path)
    except OSError:
        return ""


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key by name in which 10 comes after 9."""
    parts = re.findall(r"\d+|\D+", path.name.casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def _list_scene(scene: Path) -> _Scene:
    """Return images and positions of one scene's folder; _SceneError says what is wrong with it."""
    rigs = sorted((p for p in scene.glob(RIG_PATTERN) if p.is_dir()), key=natural_key)
    folder = rigs[0] if rigs else scene
    files = [p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file()]
    found = (p for p in files if p.suffix.lower() in IMAGE_SUFFIXES)
    images = tuple(sorted(found, key=natural_key))
    listed = folder / POSITIONS_FILE
    if listed.exists():
        positions = _read_positions(listed)
        if len(positions) != len(images):
            raise _SceneError(
                f"{POSITIONS_FILE} has {len(positions)} positions for {len(images)} images"
            )
    elif len(images) != FRAMES:
        raise _SceneError(f"{len(images)} images instead of {FRAMES}, and no {POSITIONS_FILE}")
    else:
        positions = POSITIONS
    return _Scene(scene.name, images, positions, RIG_ASPECT if rigs else None)


def _read_positions(path: Path) -> tuple[float, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split()
        positions = tuple(float(line) for line in lines)
    except (OSError, ValueError) as error:
        raise _SceneError(f"{POSITIONS_FILE} is not a list of numbers ({error})") from error
    if len(positions) < 2:
        raise _SceneError(f"{POSITIONS_FILE} has {len(positions)} positions, at least 2 are needed")
    if not all(0 <= p <= FRAMES - 1 for p in positions):
        raise _SceneError(f"{POSITIONS_FILE} has a position outside 0..{FRAMES - 1}")
    if any(a >= b for a, b in pairwise(positions)):
        raise _SceneError(f"{POSITIONS_FILE} does not ascend: order the images near to far")
    return positions


def _read_frames(
    scene: _Scene, size: Size | None, crop: bool, register: bool
) -> tuple[Tensor, float]:
    """Return [N, 3, H, W] in [-1, 1] and what the lens saw (`FocalStack.aspect`); _SceneError when
    an image is broken or they differ in size."""
    images: list[Image.Image] = []
    sizes: list[Size] = []
    for path in scene.images:
        try:
            image: Image.Image = load_photo(path)
        except (UserError, *BROKEN) as error:
            raise _SceneError(f"{path.name} cannot be read ({error})") from error
        aspect = scene.aspect or image.width / image.height
        if not register:
            image = sized(image, size, crop, aspect)
        sizes.append(size_of(image))
        if sizes[-1] != sizes[0]:
            first, last = size_text(sizes[0]), size_text(sizes[-1])
            raise _SceneError(f"{path.name} is {last}, {scene.images[0].name} is {first}")
        images.append(near(image, size) if register else image)
    if register:
        frames = registered(from_uint8(np.stack([np.asarray(image) for image in images])), aspect)
        images = [sized(Image.fromarray(p), size, crop, aspect) for p in to_uint8(frames)]
    if size is not None and crop:
        aspect = images[0].width / images[0].height
    return from_uint8(np.stack([np.asarray(image) for image in images])), aspect


class RenderedScenes(Source):
    """The scenes of seeds, as a source."""

    rendered = True

    def __init__(self, seeds: Sequence[int], size: Size, photos: Photos = ()) -> None:
        self.seeds, self.size, self.photos = [int(seed) for seed in seeds], size, photos
        self.names = tuple(f"synthetic-{seed}" for seed in self.seeds)

    @cached_property
    def key(self) -> str:
        """A hash of the renderer's version, seeds, size and photos."""
        photos = [[*p.shape, hashlib.sha256(p.tobytes()).hexdigest()] for p in self.photos]
        return key_of(version=CACHE_VERSION, seeds=self.seeds, size=list(self.size), photos=photos)

    def load(self, index: int) -> FocalStack:
        frames = render_scene(self.seeds[index], self.size, self.photos)
        return FocalStack(self.names[index], frames, POSITIONS)


class StackCache(Sequence[FocalStack]):
    """Stacks on disk: read-only memory maps, `images` uint8 [S, 10, 3, H, W], the frames and the
    picture that is sharp everywhere, and `dioptres` float16 [S, H/4, W/4], which are NaN where that
    picture and they are unknown."""

    def __init__(
        self, images: NDArray[np.uint8], dioptres: NDArray[np.float16], names: Sequence[str]
    ) -> None:
        self.images, self.dioptres, self.names = images, dioptres, tuple(names)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The frames alone, uint8 [S, 9, 3, H, W]."""
        return self.images[:, :FRAMES]

    def part(self, which: slice) -> StackCache:
        return StackCache(self.images[which], self.dioptres[which], self.names[which])

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> FocalStack: ...
    @overload
    def __getitem__(self, index: slice) -> list[FocalStack]: ...
    def __getitem__(self, index: int | slice) -> FocalStack | list[FocalStack]:
        """Return one stack as float frames, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        images = from_uint8(self.images[index], planar=True)
        dioptres = torch.from_numpy(np.array(self.dioptres[index], np.float32))
        known = (images[FRAMES], dioptres) if dioptres.isfinite().all() else (None, None)
        return FocalStack(self.names[index], images[:FRAMES], POSITIONS, *known)


def cache_sources(folder: Path, sources: Sequence[Source], size: Size) -> StackCache:
    """Gather the stacks of all sources in a folder, or reuse what is already there.

    Writes stacks.npy and dioptres.npy, as of `StackCache`, and stacks.json with size, the sources'
    key, and how many of their stacks were taken; of those that are broken or lack a position there
    is none. An interrupted run goes on where it stopped; another key starts anew; while another
    process fills the folder it is waited for. UserError when the folder cannot be written, or
    nothing is usable.
    """
    folder, total = Path(folder), sum(len(source.names) for source in sources)
    key, shapes = key_of(sources=[source.key for source in sources]), _shapes(total, size)
    empty = {"size": list(size), "total": total, "taken": 0, "names": []}

    def found() -> Kept:
        kept = Kept(folder / "stacks.json", key)
        if "taken" not in kept.fields or not _fit(folder, shapes):
            kept.fields = dict(empty, names=[])
        return kept

    kept = found()
    if kept.fields["taken"] < total:
        with alone_in(folder, "gather stacks", GATHERING_S), one_line(folder):
            kept = found()  # another process may have gathered them meanwhile
            if kept.fields["taken"] < total:
                _gather(folder, sources, kept, shapes)
    names = kept.fields["names"]
    if not names:
        raise UserError(f"{folder} holds no usable focal stack: {LAYOUT}")
    images, dioptres = (np.load(folder / name, mmap_mode="r")[: len(names)] for name in shapes)
    return StackCache(images, dioptres, names)


Shapes = dict[str, tuple[type, tuple[int, ...]]]


def _shapes(total: int, size: tuple[int, ...]) -> Shapes:
    """What the files of a cache hold: numbers of a type, in a shape."""
    cells = (side // DEPTH_CELL for side in size)
    return {
        "stacks.npy": (np.uint8, (total, IMAGES, 3, *size)),
        "dioptres.npy": (np.float16, (total, *cells)),
    }


def _fit(folder: Path, shapes: Shapes) -> bool:
    """Whether the files of a cache are there, and hold that."""
    try:
        found = {name: np.load(folder / name, mmap_mode="r") for name in shapes}
    except (OSError, ValueError, EOFError):
        return False
    return shapes == {name: (values.dtype, values.shape) for name, values in found.items()}


def _gather(folder: Path, sources: Sequence[Source], kept: Kept, shapes: Shapes) -> None:
    about = kept.fields
    total = about["total"]
    if about["taken"] == 0:
        for name, (kind, shape) in shapes.items():
            with write_atomic(folder / name) as scratch:
                np.lib.format.open_memmap(scratch, "w+", kind, shape).flush()
                reserve(scratch)
        kept.save()
    images, dioptres = (np.lib.format.open_memmap(folder / name, "r+") for name in shapes)
    places = [(source, n) for source in sources for n in range(len(source.names))]
    left = places[about["taken"] :]
    for stack in track(_loaded(left), "gathering stacks", len(left)):
        if stack is not None and stack.positions != POSITIONS:
            say_skipped(stack.name, f"training needs frames at 0 to {FRAMES - 1}")
        elif stack is not None:
            at = len(about["names"])
            images[at, :FRAMES] = to_uint8(stack.frames, planar=True)
            if stack.sharp is not None:
                images[at, FRAMES] = to_uint8(stack.sharp, planar=True)
            dioptres[at] = np.nan if stack.dioptres is None else stack.dioptres.numpy()
            about["names"].append(stack.name)
        about["taken"] += 1
        if about["taken"] % 32 == 0 or about["taken"] == total:
            images.flush()
            dioptres.flush()
            kept.save()
    skipped = total - len(about["names"])
    if skipped:
        say(f"warning: {skipped} of {total} scenes skipped")


def _loaded(places: Sequence[tuple[Source, int]]) -> Iterator[FocalStack | None]:
    """Return the stacks at these places in turn; many rendered ones are shared among the cores."""
    for rendered, run in groupby(places, lambda place: place[0].rendered):
        some = list(run)
        shared = rendered and cores() > 1 and len(some) >= WORTH_SHARING
        yield from _shared(some) if shared else (source.load(index) for source, index in some)


def _shared(places: Sequence[tuple[Source, int]]) -> Iterator[FocalStack | None]:
    sources = list({id(source): source for source, _ in places}.values())
    numbers = {id(source): n for n, source in enumerate(sources)}
    tasks = [(numbers[id(source)], index) for source, index in places]
    with ProcessPoolExecutor(
        cores(), get_context("spawn"), initializer=_begin_worker, initargs=(sources,)
    ) as pool:
        yield from pool.map(_load_in_worker, tasks)


_worker_sources: list[Source] = []


def _begin_worker(sources: list[Source]) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    _worker_sources[:] = sources


def _load_in_worker(place: tuple[int, int]) -> FocalStack | None:
    return _worker_sources[place[0]].load(place[1])
