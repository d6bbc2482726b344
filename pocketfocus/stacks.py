"""Focal stacks behind one interface: rendered, read from folders, or cached on disk.

Legend: N frames of a stack (9 unless its folder says otherwise), H, W; S stacks in a cache.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from pocketfocus.errors import UserError
from pocketfocus.files import key_of, read_json, write_atomic, write_json, writing_failed
from pocketfocus.optics import FRAMES
from pocketfocus.progress import console, track
from pocketfocus.scenes import render_scene

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
POSITIONS_FILE = "positions.txt"
RIG_PATTERN = "midsize/undistorted/RigCenter*"
LAYOUT = (
    f"expected a folder per scene with {FRAMES} images named in order near to far, or 2 or more "
    f"and a {POSITIONS_FILE} with a number 0..{FRAMES - 1} a line, or SCENE/{RIG_PATTERN}/"
)
CACHE_VERSION = 2  # to be raised when rendering changes: older caches are then rendered anew

Size = tuple[int, int]
Photos = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class FocalStack:
    """One scene: frames [N, 3, H, W] sRGB in [-1, 1] at ascending focal positions in [0, 8]."""

    name: str
    frames: Tensor
    positions: tuple[float, ...]


def synthetic_stacks(
    n: int, seed0: int = 0, size: Size = (256, 256), photos: Photos = ()
) -> Iterator[FocalStack]:
    """Render the scenes of seeds seed0 … seed0 + n - 1, one at a time."""
    for seed in range(seed0, seed0 + n):
        frames = render_scene(seed, size, photos)
        yield FocalStack(f"synthetic-{seed}", frames, tuple(map(float, range(FRAMES))))


@dataclass(frozen=True)
class _Scene:
    name: str
    images: tuple[Path, ...]
    positions: tuple[float, ...]


class _SceneError(Exception):
    """Why one scene of a folder cannot be used."""


def _warn(message: str) -> None:
    console.print(f"warning: {message}", markup=False, soft_wrap=True)


class StackFolder:
    """The usable stacks of a folder, opened one at a time; `skipped` maps a scene to the reason.

    `len` counts scenes whose files are listed in order; one whose images turn out to be broken is
    skipped, with a message, when it is reached, and is then no longer counted.
    """

    def __init__(
        self, folder: Path, size: Size | None, say: Callable[[str], None] | None = None
    ) -> None:
        self.folder, self.size = Path(folder), size
        self.skipped: dict[str, str] = {}
        self._say = say or _warn
        self._scenes: list[_Scene] = []
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder: {LAYOUT}")
        for scene in sorted((p for p in self.folder.iterdir() if p.is_dir()), key=natural_key):
            try:
                self._scenes.append(_list_scene(scene))
            except _SceneError as reason:
                self._skip(scene.name, str(reason))
        self._demand_some()

    def __len__(self) -> int:
        return sum(scene.name not in self.skipped for scene in self._scenes)

    def __iter__(self) -> Iterator[FocalStack]:
        for scene in self._scenes:
            if scene.name in self.skipped:
                continue
            try:
                frames = _read_frames(scene.images, self.size)
            except _SceneError as reason:
                self._skip(scene.name, str(reason))
                continue
            yield FocalStack(scene.name, frames, scene.positions)
        self._demand_some()

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        self._say(f"scene {name} skipped: {reason}")

    def _demand_some(self) -> None:
        if len(self) == 0:
            also = f" ({len(self.skipped)} skipped)" if self.skipped else ""
            raise UserError(f"{self.folder} holds no usable focal stack{also}: {LAYOUT}")


def read_stacks(
    folder: Path, size: Size | None = None, say: Callable[[str], None] | None = None
) -> StackFolder:
    """The focal stacks of a folder: 9 images a scene, images and positions.txt, or a RigCenter.

    size: (height, width) to resize to with Pillow's Lanczos filter, None to leave as it is.
    say: is given one line per scene that is skipped; by default it goes to standard error.
    UserError, naming the folder and the layout, when nothing in it is usable.
    """
    return StackFolder(folder, size, say)


def read_photos(folder: Path) -> list[Path]:
    """The photos of a folder in natural order; UserError when there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that holds photos")
    photos = _images_in(folder)
    if not photos:
        kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        raise UserError(f"{folder} holds no photo: put {kinds} files into it")
    return photos


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key by name in which 10 comes after 9."""
    parts = re.findall(r"\d+|\D+", path.name.casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def _images_in(folder: Path) -> list[Path]:
    entries = (p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
    return sorted((p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES), key=natural_key)


def _list_scene(scene: Path) -> _Scene:
    """Images and positions of one scene's folder; _SceneError says what is wrong with it."""
    rigs = sorted((p for p in scene.glob(RIG_PATTERN) if p.is_dir()), key=natural_key)
    folder = rigs[0] if rigs else scene
    images = tuple(_images_in(folder))
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
        positions = tuple(map(float, range(FRAMES)))
    return _Scene(scene.name, images, positions)


def _read_positions(path: Path) -> tuple[float, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split()
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


def _read_frames(images: Sequence[Path], size: Size | None) -> Tensor:
    """[N, 3, H, W] in [-1, 1]; _SceneError when one is broken or they differ in size."""
    frames: list[NDArray[np.uint8]] = []
    for path in images:
        try:
            image = open_photo(path)
        except (UserError, OSError, ValueError, SyntaxError) as error:
            raise _SceneError(f"{path.name} cannot be read ({error})") from error
        if size is not None:
            image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
        pixels = np.asarray(image)
        if frames and pixels.shape != frames[0].shape:
            raise _SceneError(
                f"{path.name} is {pixels.shape[1]}x{pixels.shape[0]}, {images[0].name} is "
                f"{frames[0].shape[1]}x{frames[0].shape[0]}"
            )
        frames.append(pixels)
    return _to_float(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2))


def open_photo(path: Path) -> Image.Image:
    """A photo as upright sRGB; with colour management when `pocketfocus.images` is there."""
    try:
        from pocketfocus.images import load_photo
    except ImportError:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    photo: Image.Image = load_photo(path)
    return photo


def _to_float(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32) / 127.5 - 1


def _to_bytes(frames: Tensor) -> NDArray[np.uint8]:
    pixels = ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.asarray(pixels.cpu().numpy())


class StackCache(Sequence[FocalStack]):
    """Rendered stacks on disk: `pixels` is a read-only memory map, uint8 [S, 9, 3, H, W]."""

    def __init__(self, pixels: NDArray[np.uint8], seeds: Sequence[int]) -> None:
        self.pixels, self.seeds = pixels, tuple(seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    @overload
    def __getitem__(self, index: int) -> FocalStack: ...
    @overload
    def __getitem__(self, index: slice) -> list[FocalStack]: ...
    def __getitem__(self, index: int | slice) -> FocalStack | list[FocalStack]:
        """One stack as float frames, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        frames = _to_float(torch.from_numpy(self.pixels[index].copy()))
        positions = tuple(map(float, range(FRAMES)))
        return FocalStack(f"synthetic-{self.seeds[index]}", frames, positions)


def cache_stacks(
    folder: Path, seeds: Sequence[int], size: Size = (256, 256), photos: Photos = ()
) -> StackCache:
    """Render the scenes of `seeds` into a folder, or reuse what is already there.

    Writes stacks.npy, uint8 [S, 9, 3, H, W], and stacks.json with seeds, size, the key of all that
    the pixels depend on and how many are done. An interrupted run goes on where it stopped; another
    key starts anew. UserError when the folder cannot be written.
    """
    folder, seeds = Path(folder), [int(seed) for seed in seeds]
    key = _cache_key(seeds, size, photos)
    done = _stacks_done(folder, key, (len(seeds), FRAMES, 3, *size))
    if done < len(seeds):
        try:
            _render_into(folder, key, seeds, size, photos, done)
        except OSError as error:
            raise writing_failed(folder, error) from error
    return load_cache(folder)


def load_cache(folder: Path) -> StackCache:
    """Open a finished cache; UserError when it is missing, unfinished or does not fit its JSON."""
    folder = Path(folder)
    about = read_json(folder / "stacks.json")
    seeds, done = about.get("seeds", []), about.get("done", 0)
    if done != len(seeds):
        raise UserError(f"{folder} holds {done} of {len(seeds)} stacks: run the caching to its end")
    wanted = (len(seeds), FRAMES, 3, *about.get("size", ()))
    try:
        pixels = np.load(folder / "stacks.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/stacks.npy cannot be read ({error}): delete {folder}") from error
    if pixels.shape != wanted or pixels.dtype != np.uint8:
        raise UserError(
            f"{folder}/stacks.npy is {pixels.dtype} {pixels.shape}, its stacks.json says uint8 "
            f"{wanted}: delete {folder}"
        )
    return StackCache(pixels, seeds)


def _cache_key(seeds: Sequence[int], size: Size, photos: Photos) -> str:
    hashes = [[*photo.shape, hashlib.sha256(photo.tobytes()).hexdigest()] for photo in photos]
    return key_of(version=CACHE_VERSION, seeds=list(seeds), size=list(size), photos=hashes)


def _stacks_done(folder: Path, key: str, shape: tuple[int, ...]) -> int:
    """How many stacks of this very cache are finished; 0 when it is absent, broken or another."""
    try:
        about = read_json(folder / "stacks.json")
        fits = np.load(folder / "stacks.npy", mmap_mode="r").shape == shape
    except (UserError, OSError, ValueError):
        return 0
    return int(about.get("done", 0)) if fits and about.get("key") == key else 0


def _render_into(
    folder: Path, key: str, seeds: Sequence[int], size: Size, photos: Photos, done: int
) -> None:
    about = {"key": key, "seeds": list(seeds), "size": list(size)}
    if done == 0:
        with write_atomic(folder / "stacks.npy") as scratch:
            shape = (len(seeds), FRAMES, 3, *size)
            np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=shape).flush()
        write_json(folder / "stacks.json", {**about, "done": 0})
    pixels = np.lib.format.open_memmap(folder / "stacks.npy", mode="r+")
    for index in track(range(done, len(seeds)), "rendering stacks", len(seeds) - done):
        pixels[index] = _to_bytes(render_scene(seeds[index], size, photos))
        if (index + 1) % 32 == 0 or index + 1 == len(seeds):
            pixels.flush()
            write_json(folder / "stacks.json", {**about, "done": index + 1})
