"""Focal stacks of real photos with depth, endlessly different, as a phone would have taken them.

A photo and its depth give the layout; scale, crop, the dioptres, the lens and what a phone does to
its pictures afterwards are drawn at random. Depth of most photos is relative, so the nearest and
the farthest place are put at random distances too. Sources differ in crispness (docs/realism.md):
each is scaled down until its photos are as crisp as a phone's picture of 12 megapixels that is
scaled down, for a network that learns from soft truths does not sharpen. What lies hidden behind an
edge is filled in from its farther side, so that a blurred foreground lets something through.

Legend: I = 10 images, the nine frames and the picture that is sharp everywhere, H, W.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from pocketfocus.data.optics import (
    NEAREST_DIOPTRES,
    Camera,
    Layer,
    Shoulder,
    all_in_focus,
    linear_to_srgb,
    render_stack,
    srgb_to_linear,
)
from pocketfocus.data.rgbd import RGBD, Array, motorcycle, read_rgbd, rgbd_pairs
from pocketfocus.data.scenes import through_jpeg
from pocketfocus.data.stacks import (
    CACHE_VERSION,
    DEPTH_CELL,
    FocalStack,
    Source,
    content_of,
    say_skipped,
)
from pocketfocus.photos.focusmap import box
from pocketfocus.photos.images import BROKEN, from_uint8, light_to_uint8
from pocketfocus.run.constants import FRAMES, IMAGES, POSITIONS, Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import key_of

PHONE_WIDTH = 320  # pixels of a phone picture's shorter side, for which `Kind.scales` are
APERTURES = (0.91, 1.27)  # of the default camera's, see docs/realism.md
STRONGEST, POWERS = 2.0, (1.4, 2.5)  # of tone curves' shoulders: strength, ln of the power
LIGHTS = 0.2  # of the photos have lights brighter than white
GRAIN, BRIGHT_GRAIN = (0.05, 0.3), (0.2, 1.3)  # standard deviations of 255
LAYERS = 6
EDGE = 2  # pixels
SEAM = 1.0  # pixels over which the edge of a layer is softened
HELD_OUT = 20  # one scene in so many is for validation
ROOMS, ROOM = "nyuv2", 20  # a video through rooms, and pictures that are taken for one room's
ONE_PLACE = (
    *("iphone-lidar-desk", "misc-bin", "misc-person", "uoc-tabletop", "replica-render"),
    "circuit-board",
)
PREFIXES = (  # of photos and of stacks whose names go on with that of their scene
    *("lfsd-dff-", "lfsd-lytro-", "cave-dff-", "cave-focal-sweep-"),
    *("hci-lightfield-", "hci-refocused-", "lytro-illum-", "lytro-"),
)
SHRUNK = "shrunk.txt"


@dataclass(frozen=True)
class Kind:
    """A source of photos: how often it is drawn, the scales at which it is crisp, and how often it
    is drawn for larger phone pictures than `PHONE_WIDTH`, at nearly its own size."""

    share: float
    scales: tuple[float, float]
    large: float = 0.0


KINDS = {
    "bsds": Kind(0.20, (0.5, 0.75)),  # depth that a network told: easier than what was measured
    "nyuv2": Kind(0.18, (0.45, 0.65)),
    "lfsd": Kind(0.28, (0.5, 1.0), 0.35),
    "cave": Kind(0.06, (0.5, 0.9), 0.1),
    "iphone": Kind(0.10, (0.5, 0.9), 0.2),
    "marigold": Kind(0.08, (0.5, 1.0), 0.2),
    "": Kind(0.10, (0.5, 0.9), 0.15),
}
"""By the first word of a photo's name; "" for all others."""
LARGE_SCALES = (0.9, 1.0)
WHOLE_RANGE = 0.9  # of windows have their own nearest and farthest place put as a whole scene's are
LEAST_RANGE = 0.15  # of the photo's, that a window spans then: less is a surface, not a scene

Pair = tuple[Path, Path]


class PhotoScenes(Source):
    """Scenes of a folder of photos with depth (see `rgbd.rgbd_pairs`), one a seed, as windows into
    phone pictures; they carry the picture that is sharp everywhere, and dioptres.

    Args:
        folder: of the pairs; None for the one that comes along.
        size: (height, width) of the scenes, pixels.
        seeds: of the scenes.
        phone_width: the shorter side of these pictures, pixels: blur is in proportion to it. None
            is that of `size`.
        validation: whether the scenes are of the held-out photos, or of all the others; of all
            where there are none such.

    A folder whose photos were scaled down already says by how much in shrunk.txt (see
    `research.gpu_subset`). Without a photo that is crisp at `phone_width` there are no scenes.
    """

    rendered = True

    def __init__(
        self,
        folder: Path | None,
        size: Size,
        seeds: Sequence[int],
        phone_width: int | None = None,
        validation: bool = False,
    ) -> None:
        self.size, self.phone_width, self.validation = size, phone_width or min(size), validation
        self.shrunk = 1.0 if folder is None else shrunk_by(Path(folder) / SHRUNK)
        self.pairs: dict[str, list[Pair | None]] = {}
        every: list[Pair | None] = [None] if folder is None else [*rgbd_pairs(folder)]
        side = [pair for pair in every if pair and is_held_out(pair[0].stem) == validation]
        for pair in side or every:
            kind = kind_of(pair[0].stem if pair else "")
            if self._share(kind):
                self.pairs.setdefault(kind, []).append(pair)
        self.seeds = [int(seed) for seed in seeds] if self.pairs else []
        self.names = tuple(f"rgbd-{seed}" for seed in self.seeds)
        self._broken: set[str] = set()

    @cached_property
    def key(self) -> str:
        """A hash of the renderer's version, seeds, sizes, and the files' names and content."""
        pairs = [pair for kind in self.pairs.values() for pair in kind if pair]
        files = [[path.name, content_of(path)] for pair in pairs for path in pair]
        sizes = [*self.size, self.phone_width, self.shrunk]
        return key_of(version=CACHE_VERSION, seeds=self.seeds, sizes=sizes, files=files)

    def load(self, index: int) -> FocalStack | None:
        """Render one, on the GPU where there is one; None, said once a pair, when its files are
        broken or do not fit."""
        rng = np.random.default_rng([self.seeds[index], int(self.validation)])
        shares = np.array([self._share(name) for name in self.pairs])
        name = list(self.pairs)[rng.choice(len(shares), p=shares / shares.sum())]
        pair = self._read(self.pairs[name][rng.integers(len(self.pairs[name]))])
        if pair is None:
            return None
        scales = LARGE_SCALES if self.phone_width > PHONE_WIDTH else KINDS[name].scales
        low, high = (scale / self.shrunk for scale in scales)
        photo, nearness = cut(pair, rng, self.size, (low, high))
        dioptres = placed(nearness, rng)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        shoulder = Shoulder(rng.uniform(0, STRONGEST), float(np.exp(rng.uniform(*POWERS))))
        layers = [layer.to(device) for layer in layers_of(lit(photo, shoulder, rng), dioptres)]
        images = from_uint8(photographed(layers, shoulder, rng, self.phone_width))
        cells = Image.fromarray(dioptres).resize(
            (self.size[1] // DEPTH_CELL, self.size[0] // DEPTH_CELL), Image.Resampling.BOX
        )
        known = torch.from_numpy(np.array(cells))
        return FocalStack(self.names[index], images[:FRAMES], POSITIONS, images[FRAMES], known)

    def _share(self, kind: str) -> float:
        return KINDS[kind].large if self.phone_width > PHONE_WIDTH else KINDS[kind].share

    def _read(self, pair: Pair | None) -> RGBD | None:
        if pair is None:
            return motorcycle()
        try:
            return read_rgbd(*pair)
        except (UserError, *BROKEN) as error:
            if pair[0].stem not in self._broken:
                say_skipped(pair[0].stem, str(error))
            self._broken.add(pair[0].stem)
            return None


def shrunk_by(note: Path) -> float:
    """Return by how much photos were scaled down, as a note says, 1 where there is none."""
    if not note.is_file():
        return 1.0
    try:
        factor = float(note.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{note} holds no number ({error}): make the folder anew") from error
    if not 0 < factor <= 1:
        raise UserError(f"{note} says {factor:g}, not more than 0 up to 1: make the folder anew")
    return factor


def kind_of(name: str) -> str:
    """Which of `KINDS` a photo is, by its name."""
    first = name.partition("-")[0]
    return first if first in KINDS else ""


def is_held_out(name: str) -> bool:
    """Return whether a photo with depth, or a real stack, is for validation: by its scene, so that
    pictures of one scene are on one side."""
    return zlib.crc32(scene_of(name).encode()) % HELD_OUT == 0


def scene_of(name: str) -> str:
    """Return what the scene of a photo with depth or of a real stack is called, as far as names
    tell: neighbours in a video of a room are of one."""
    for place in ONE_PLACE:
        if name.startswith(place):
            return place
    rooms, _, number = name.partition("-")
    if rooms == ROOMS and number.isdecimal():
        return f"{rooms}-{int(number) // ROOM}"
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def cut(
    pair: RGBD, rng: Generator, size: Size, scales: tuple[float, float]
) -> tuple[NDArray[np.uint8], Array]:
    """A random window at a random scale, mirrored or not: photo [H,W,3] and nearness [H,W] in
    [0,1], 0 at the farthest place of the whole photo and 1 at the nearest, or of the window, where
    it is a scene by itself."""
    height, width = pair.dioptres.shape
    scale = max(size[0] / height, size[1] / width, rng.uniform(*scales))
    rows, columns = min(height, round(size[0] / scale)), min(width, round(size[1] / scale))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    window = (slice(top, top + rows), slice(left, left + columns))
    far, near = np.percentile(pair.dioptres, (0.5, 99.5))
    own = np.percentile(pair.dioptres[window], (0.5, 99.5))
    if rng.random() < WHOLE_RANGE and own[1] - own[0] > LEAST_RANGE * (near - far):
        far, near = own
    nearness = np.clip((pair.dioptres[window] - far) / max(near - far, 1e-6), 0, 1)
    target = (size[1], size[0])
    photo = np.asarray(Image.fromarray(pair.photo[window]).resize(target, Image.Resampling.LANCZOS))
    # nearest: a depth between those of two sides of an edge is nowhere in the scene
    image = Image.fromarray(nearness.astype(np.float32)).resize(target, Image.Resampling.NEAREST)
    scaled = np.asarray(image, np.float32)
    if rng.random() < 0.5:
        photo, scaled = photo[:, ::-1], scaled[:, ::-1]
    return photo, np.ascontiguousarray(scaled)


def placed(nearness: Array, rng: Generator) -> Array:
    """Dioptres [H,W] for the nearness of places: near things 5 to 17 cm away.

    Phones' focal stacks are close-ups. In two scenes of three the far end is 15 to 50 cm away, so
    that as much lies in front of a focal position in the middle as behind it; in the others it is
    a room's or anywhere; one scene in twelve is a page or a wall, nearly flat.
    """
    nearness = nearness ** np.exp(rng.uniform(np.log(0.6), np.log(1.6)))
    kind = rng.random()
    if kind < 0.08:
        flat = rng.uniform(2, NEAREST_DIOPTRES) + rng.uniform(0, 1.5) * (nearness - nearness.mean())
        return np.clip(flat, 0, NEAREST_DIOPTRES).astype(np.float32)
    near = rng.uniform(9 if kind < 0.75 else 6, NEAREST_DIOPTRES)
    if kind < 0.75:
        far = min(rng.uniform(2, 6.5), 0.8 * near)
    elif kind < 0.92:
        far = rng.uniform(0, 3)
    else:
        far = near * rng.uniform(0.1, 0.8)
    return np.asarray(far + (near - far) * nearness, np.float32)


def lit(photo: NDArray[np.uint8], shoulder: Shoulder, rng: Generator) -> Array:
    """The light [H,W,3] that a photo shows; in some, lights are brighter than the photo's white
    was, so that they blur to discs."""
    linear = srgb_to_linear(torch.from_numpy(photo.astype(np.float32) / 255))
    light = shoulder.undone(linear).numpy()
    if rng.random() < LIGHTS:
        white = np.clip(linear.numpy().min(-1, keepdims=True) - 0.8, 0, 1) / 0.2
        light = light * (1 + rng.uniform(1, 8) * white**2)
    return np.asarray(light, np.float32)


def layers_of(linear: Array, dioptres: Array) -> list[Layer]:
    """Layers far to near, cut at even steps of dioptres; each reaches on behind the nearer ones."""
    cuts = np.linspace(dioptres.min(), dioptres.max() + 1e-4, LAYERS + 1)
    layers: list[Layer] = []
    for low, high in pairwise(cuts):
        own = (dioptres >= low) & (dioptres < high)
        if not own.any():
            continue
        rows, columns = hidden_sources(own)
        alpha = ndimage.gaussian_filter((dioptres >= low).astype(np.float32), SEAM / 2)
        colours = np.ascontiguousarray(linear[rows, columns].transpose(2, 0, 1))
        layers.append(
            Layer(
                torch.from_numpy(colours),
                torch.from_numpy(alpha if layers else np.ones_like(alpha)),
                torch.from_numpy(np.clip(dioptres[rows, columns], 0, NEAREST_DIOPTRES)),
            )
        )
    return layers


def hidden_sources(own: NDArray[np.bool_]) -> NDArray[np.int_]:
    """Row and column [2, H, W] to take each pixel of a layer from: its own, or where it is hidden
    the nearest one of the layer that is no edge, whose colour is that of both sides."""
    inner = ndimage.binary_erosion(own, iterations=EDGE, border_value=1)
    _, nearest = ndimage.distance_transform_edt(
        ~(inner if inner.any() else own), return_indices=True
    )
    return np.where(own, np.indices(own.shape), nearest)


def photographed(
    layers: Sequence[Layer], shoulder: Shoulder, rng: Generator, phone_width: int = PHONE_WIDTH
) -> NDArray[np.uint8]:
    """The images [I,H,W,3] that some phone makes of layers: its lens, exposure, tone mapping, the
    halos of its sharpening, noise in light and colour, and JPEG."""
    height, width = layers[0].alpha.shape
    aperture = Camera.aperture_mm * rng.uniform(*APERTURES) * phone_width / min(height, width)
    blades = int(rng.integers(5, 9)) if rng.random() < 0.2 else 0
    linear = render_stack(layers, Camera(aperture_mm=aperture, blades=blades))
    linear = torch.cat([linear, all_in_focus(layers)[None]])
    light = torch.linspace(0, 1, FRAMES) * rng.uniform(0, 0.15)  # near focus costs light
    light = (1 + torch.cat([light, light.mean()[None]])) / (1 + light.mean())
    exposure = float(np.exp(rng.normal(0, 0.15)))
    exposed = linear * exposure * light.to(linear)[:, None, None, None]
    stack = linear_to_srgb(shoulder.applied(exposed))
    if rng.random() < 0.7:
        stack = stack + rng.uniform(0, 0.4) * (stack - box(stack, min(height, width) // 16))
    if rng.random() < 0.6:
        stack = stack + rng.uniform(0, 0.5) * (stack - box(stack, 1))
    stack = stack.clamp(0, 1) ** float(np.exp(rng.normal(0, 0.1)))
    noisy = stack.cpu() + noise(rng, (height, width))
    quality = int(rng.integers(90, 99))
    return np.stack([through_jpeg(frame, quality) for frame in light_to_uint8(noisy)])


def noise(rng: Generator, size: Size) -> Tensor:
    """What is left, in sRGB [I,3,H,W], of a phone's noise: fine grain, most of it in brightness,
    and blotches of colour."""
    height, width = size
    grain = rng.standard_normal((IMAGES, 3, height, width), np.float32)
    bright = rng.standard_normal((IMAGES, 1, height, width), np.float32)
    blotches = rng.standard_normal((IMAGES, 3, height // 4, width // 4), np.float32)
    wide = F.interpolate(torch.from_numpy(blotches), size, mode="bilinear")
    fine = torch.from_numpy(grain) * rng.uniform(*GRAIN)
    fine = fine + torch.from_numpy(bright) * rng.uniform(*BRIGHT_GRAIN)
    return (fine + wide * rng.uniform(0, 0.4)).float() / 255
