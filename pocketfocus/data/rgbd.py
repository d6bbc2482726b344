"""Whole scenes from a photo and its depth: real layouts, refocused by the renderer.

A depth map tells the distance of what is seen; what lies hidden behind an edge is filled in from
its farther side, so that a blurred foreground lets something through.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pocketfocus.data.optics import NEAREST_DIOPTRES, Layer, srgb_to_linear
from pocketfocus.data.scenes import bundled_file, bundled_photos
from pocketfocus.data.stacks import IMAGE_SUFFIXES, natural_key
from pocketfocus.photos.images import load_photo
from pocketfocus.run.constants import Size, size_text
from pocketfocus.run.errors import UserError

Array = NDArray[np.float32]

DEPTH_SUFFIXES = (".depth.png", ".depth.npy", ".depth.npz")
MILLIMETRE = 1e-3  # 16-bit depth maps hold millimetres
LAYERS = 6
# Rooms are metres deep, where a phone blurs little: a pair becomes a model of its scene, scaled so
# that its nearest surface lies where close-ups are.
NEAREST = (8.0, 20.0)
SMALLEST_CROP = 0.6  # of the shorter side
EDGE = 2  # pixels
SEAM = 1.0  # pixels over which the edge of a layer is softened
# Middlebury 2014 motorcycle: focal length in px × baseline in m, and the principal points' offset
MOTORCYCLE_FB, MOTORCYCLE_OFFSET = 994.978 * 0.193001, 31.086


@dataclass(frozen=True)
class RGBD:
    """A photo, uint8 [H, W, 3], and the dioptres of its pixels, float32 [H, W], > 0 and finite."""

    name: str
    photo: NDArray[np.uint8]
    dioptres: Array


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
    pixel that is known. A depth map of the photo's proportions is resampled to its size.
    """
    pixels = np.asarray(load_photo(photo))
    metres = _read_depth(depth)
    if metres.ndim != 2:
        raise ValueError(f"{depth.name} is of shape {list(metres.shape)}, one of [H, W] is needed")
    (height, width), (rows, columns) = pixels.shape[:2], metres.shape
    if abs(rows * width - columns * height) > 0.02 * columns * height:
        raise ValueError(
            f"{depth.name} is {size_text(metres.shape)}, {photo.name} is "
            f"{size_text(pixels.shape[:2])}"
        )
    known = np.isfinite(metres) & (metres > 0)
    if not known.any():
        raise ValueError(f"{depth.name} holds no depth above zero")
    dioptres = np.where(known, 1 / np.where(known, metres, 1), np.nan).astype(np.float32)
    complete = _complete(dioptres)
    if (rows, columns) != (height, width):
        scaled = Image.fromarray(complete).resize((width, height), Image.Resampling.NEAREST)
        complete = np.asarray(scaled, np.float32)
    return RGBD(photo.stem, pixels, complete)


def _read_depth(path: Path) -> NDArray[np.float64]:
    """Return a depth map in metres."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            if not image.mode.startswith("I"):
                raise ValueError(f"{path.name} has 8 bits, depth in millimetres needs 16")
            return np.asarray(image, np.float64) * MILLIMETRE
    try:
        loaded = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"{path.name} is no array of numbers; pickled objects are refused"
        ) from error
    if isinstance(loaded, np.ndarray):
        return loaded.astype(np.float64)
    with loaded as file:
        if len(file.files) != 1:
            raise ValueError(f"{path.name} holds {', '.join(file.files)}: one array is needed")
        return np.asarray(file[file.files[0]], np.float64)


def _complete(values: Array) -> Array:
    """Replace values that are not finite by the nearest that is."""
    _, (rows, columns) = ndimage.distance_transform_edt(~np.isfinite(values), return_indices=True)
    return np.asarray(values[rows, columns], np.float32)


def rgbd_layers(pair: RGBD, seed: int, size: Size) -> list[Layer]:
    """Return a random crop, mirrored or not, as layers far to near of `size` (height, width).

    Layers are cut at even steps of dioptres. Each reaches on behind the nearer ones, with colours
    and depths from its own nearest visible pixel; the farthest fills the frame.
    """
    rng = np.random.default_rng(seed)
    photo, dioptres = _crop(pair, rng, size)
    dioptres = dioptres * (rng.uniform(*NEAREST) / dioptres.max())
    rgb = srgb_to_linear(torch.from_numpy(photo.astype(np.float32) / 255)).numpy()
    cuts = np.linspace(dioptres.min(), dioptres.max(), LAYERS + 1)
    layers: list[Layer] = []
    for low, high in pairwise(cuts):
        own = (dioptres >= low) & ((dioptres < high) | (high == cuts[-1]))
        if not own.any():
            continue
        rows, columns = hidden_sources(own)
        alpha = ndimage.gaussian_filter((dioptres >= low).astype(np.float32), SEAM / 2)
        layers.append(
            Layer(
                torch.from_numpy(np.ascontiguousarray(rgb[rows, columns].transpose(2, 0, 1))),
                torch.from_numpy(alpha if layers else np.ones_like(alpha)),
                torch.from_numpy(np.clip(dioptres[rows, columns], 0, NEAREST_DIOPTRES)),
            )
        )
    return layers


def hidden_sources(own: NDArray[np.bool_]) -> NDArray[np.int_]:
    """Row and column [2, H, W] to take each pixel of a layer from: its own, or where it is hidden
    the nearest one of the layer that is no edge, whose colour is that of both sides.
    """
    inner = ndimage.binary_erosion(own, iterations=EDGE, border_value=1)
    _, nearest = ndimage.distance_transform_edt(
        ~(inner if inner.any() else own), return_indices=True
    )
    return np.where(own, np.indices(own.shape), nearest)


def _crop(pair: RGBD, rng: np.random.Generator, size: Size) -> tuple[NDArray[np.uint8], Array]:
    height, width = pair.dioptres.shape
    share = rng.uniform(SMALLEST_CROP, 1) * min(height / size[0], width / size[1])
    rows, columns = int(share * size[0]), int(share * size[1])
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    window = (slice(top, top + rows), slice(left, left + columns))
    photo, depth = Image.fromarray(pair.photo[window]), Image.fromarray(pair.dioptres[window])
    pixels = np.asarray(photo.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    # nearest: a depth between those of two sides of an edge is nowhere in the scene
    dioptres = np.asarray(depth.resize((size[1], size[0]), Image.Resampling.NEAREST), np.float32)
    if rng.random() < 0.5:
        pixels, dioptres = pixels[:, ::-1], dioptres[:, ::-1]
    return pixels, np.ascontiguousarray(dioptres)
