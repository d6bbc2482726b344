"""Photos with depth maps, read from a folder, and the one that comes along."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pocketfocus.data.scenes import bundled_file, bundled_photos
from pocketfocus.data.sizing import LARGEST, limited
from pocketfocus.data.stacks import IMAGE_SUFFIXES, natural_key
from pocketfocus.photos.images import load_photo
from pocketfocus.run.constants import Size, size_text
from pocketfocus.run.errors import UserError, first_line

Array = NDArray[np.float32]

DEPTH_SUFFIXES = (".depth.png", ".depth.npy", ".depth.npz")
MILLIMETRE = 1e-3  # 16-bit depth maps hold millimetres
# Middlebury 2014 motorcycle: focal length in px × baseline in m, and the principal points' offset
MOTORCYCLE_FB, MOTORCYCLE_OFFSET = 994.978 * 0.193001, 31.086


@dataclass(frozen=True)
class RGBD:
    """A photo, uint8 [H, W, 3], and the dioptres of its pixels, float32 [H, W], > 0 and finite."""

    name: str
    photo: NDArray[np.uint8]
    dioptres: Array


@cache
def motorcycle() -> RGBD:
    """Return the Middlebury 2014 motorcycle that comes with scikit-image (Scharstein et al., GCPR
    2014).

    Its parts without measured disparity take that of the nearest part that has one.
    """
    with np.load(bundled_file("skimage", "data/motorcycle_disp.npz"), allow_pickle=False) as file:
        disparity = file[file.files[0]].astype(np.float32)
    dioptres = (disparity + MOTORCYCLE_OFFSET) / MOTORCYCLE_FB
    return RGBD("motorcycle", bundled_photos()["motorcycle"], _complete(dioptres))


def rgbd_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Return photos of a folder with their depth maps: NAME.jpg beside NAME.depth.png, .npy or
    .npz.

    UserError when the folder has no such pair.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one of photos with their depth maps")
    pairs = []
    for photo in sorted(folder.iterdir(), key=natural_key):
        if photo.suffix.lower() not in IMAGE_SUFFIXES or photo.stem.endswith(".depth"):
            continue
        maps = [photo.with_name(photo.stem + suffix) for suffix in DEPTH_SUFFIXES]
        pairs += [(photo, depth) for depth in maps if depth.is_file()][:1]
    if not pairs:
        raise UserError(
            f"{folder} holds no photo with a depth map: put NAME.depth.png (16 bits, millimetres), "
            "or NAME.depth.npy or .npz (metres), beside NAME.jpg"
        )
    return pairs


def read_rgbd(photo: Path, depth: Path) -> RGBD:
    """Return a photo and its depth; ValueError or OSError when one is broken or their sides differ.

    Depth that is zero, negative or not finite counts as unknown and is taken from the nearest
    pixel that is known. A depth map of the photo's proportions is resampled to its size. A photo
    larger than `LARGEST` is scaled down to it: windows of so many pixels into a phone's own would
    show next to nothing of the scene.
    """
    pixels = np.asarray(limited(load_photo(photo, (LARGEST, LARGEST))))
    metres: NDArray[np.floating[Any]] = _read_depth(depth)
    if metres.ndim != 2:
        raise ValueError(f"{depth.name} is of shape {list(metres.shape)}, one of [H, W] is needed")
    (height, width), (rows, columns) = pixels.shape[:2], metres.shape
    if abs(rows * width - columns * height) > 0.02 * columns * height:
        raise ValueError(
            f"{depth.name} is {size_text(metres.shape)}, {photo.name} is "
            f"{size_text(pixels.shape[:2])} as it is read"
        )
    if rows > height:
        metres = _nearest(metres.astype(np.float32), (height, width))
    known = np.isfinite(metres) & (metres > 0)
    if not known.any():
        raise ValueError(f"{depth.name} holds no depth above zero")
    dioptres = np.where(known, 1 / np.where(known, metres, 1), np.nan).astype(np.float32)
    complete = _complete(dioptres)
    if complete.shape != (height, width):
        complete = _nearest(complete, (height, width))
    return RGBD(photo.stem, pixels, complete)


def _read_depth(path: Path) -> NDArray[np.float64]:
    """Return a depth map in metres."""
    try:
        arrays = _stored(path)
    except Exception as error:  # on damaged files NumPy, zipfile and Pillow raise nearly anything
        raise ValueError(
            f"{path.name} is damaged, cut short, or no array of numbers ({first_line(error)}); "
            "pickled objects are refused"
        ) from error
    if len(arrays) != 1:
        raise ValueError(f"{path.name} holds {', '.join(arrays)}: one array is needed")
    (values,) = arrays.values()
    if path.suffix != ".png":
        return values
    if values.dtype.itemsize == 1:
        raise ValueError(f"{path.name} has 8 bits, depth in millimetres needs 16")
    return values * MILLIMETRE


def _stored(path: Path) -> dict[str, NDArray[Any]]:
    """Return what is in a file of depth, by name; of a PNG file as it is there."""
    if path.suffix == ".png":
        with Image.open(path, formats=("PNG",)) as image:
            return {path.name: np.asarray(image)}
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {path.name: loaded.astype(np.float64)}
    with loaded as file:
        return {name: np.asarray(file[name], np.float64) for name in file.files}


def _nearest(values: Array, size: Size) -> Array:
    scaled = Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(scaled, np.float32)


def _complete(values: Array) -> Array:
    """Replace values that are not finite by the nearest that is."""
    _, (rows, columns) = ndimage.distance_transform_edt(~np.isfinite(values), return_indices=True)
    return np.asarray(values[rows, columns], np.float32)
