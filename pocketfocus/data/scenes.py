"""Procedural scenes with known depth, and the photos that come with scikit-image and scikit-learn.

A scene is a seed: the same seed, size and photos give the same scene bit for bit. Seeds below
VALIDATION_SEED are for training; validation uses seeds from there on and the held-out photos.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pocketfocus.data.optics import (
    Camera,
    Layer,
    all_in_focus,
    linear_to_srgb,
    render_stack,
    srgb_to_linear,
)
from pocketfocus.data.textures import SHAPES, Array, coverage, fractal, noise, plain, shape, texture
from pocketfocus.photos.focusmap import box
from pocketfocus.photos.images import FORMATS, from_uint8, light_to_uint8
from pocketfocus.run.constants import FRAMES, Size
from pocketfocus.run.errors import UserError

VALIDATION_SEED = 1_000_000
SENSOR_NOISE = 0.5 / 255
JPEG_QUALITY = (88, 98)
APERTURES = (0.7, 1.3)  # of the default camera's
# The nearer a lens focuses, the farther it is from the sensor and the less light falls there: on
# real phone stacks infinity is up to 15 % brighter than 5 cm (docs/realism.md).
EXTENSION = (0.0, 0.15)
LOCAL_CONTRAST = (0.0, 0.5)  # what tone mapping adds to detail below a sixteenth of the frame
PHOTO_FILES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
HELD_OUT_PHOTOS = ("chelsea", "coffee")
TRAIN_PHOTOS = tuple(name for name in PHOTO_FILES if name not in HELD_OUT_PHOTOS)

Photos = Sequence[NDArray[np.uint8]]


def bundled_photos(names: Iterable[str] = tuple(PHOTO_FILES)) -> dict[str, NDArray[np.uint8]]:
    """Return colour photos inside the scikit-image and scikit-learn wheels, name to [H, W, 3] RGB.

    UserError when one of the two packages is not installed; nothing is ever downloaded.
    """
    return {name: _bundled(*PHOTO_FILES[name]) for name in names}


def _bundled(package: str, file: str) -> NDArray[np.uint8]:
    with Image.open(bundled_file(package, file), formats=FORMATS) as image:
        return np.asarray(image.convert("RGB"))


def bundled_file(package: str, file: str) -> Path:
    """Return a file of an installed package; UserError when one of the two is missing."""
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{package} is not installed, its sample photos are needed: install it")
    path = Path(spec.origin).parent / file
    if not path.is_file():
        raise UserError(f"{package} does not contain {file}: install another version of it")
    return path


def train_photos() -> list[NDArray[np.uint8]]:
    """Return the bundled photos that training scenes may use."""
    return list(bundled_photos(TRAIN_PHOTOS).values())


def held_out_photos() -> list[NDArray[np.uint8]]:
    """Return the bundled photos that only validation scenes use."""
    return list(bundled_photos(HELD_OUT_PHOTOS).values())


@dataclass(frozen=True)
class _Plan:
    """What kind of place a scene is: depths in dioptres, the horizon as a fraction of height."""

    far: float
    near: float
    horizon: float
    table: bool

    def ground(self, row: Array | float) -> Array | float:
        """Return the table's dioptres at a row, 0 top to 1 bottom: linear, as for any plane."""
        depth = (row - self.horizon) / (1 - self.horizon)
        return self.far + (self.near - self.far) * np.clip(depth, 0, 1)


def _plan(rng: Generator) -> _Plan:
    kind = rng.random()
    if kind < 0.6:  # table top with close objects
        far, near = rng.uniform(0, 5), rng.uniform(10, 20)
    elif kind < 0.88:  # arm's length
        far, near = rng.uniform(0, 5), rng.uniform(5, 11)
    else:  # shallow: a wall, a shelf, a view
        far = rng.uniform(0, 9)
        near = far + rng.uniform(0.3, 3)
    return _Plan(far, near, rng.uniform(0.1, 0.6), rng.random() < 0.75)


class _Canvas:
    """A layer under construction: sRGB colour, coverage and dioptres, painted far to near."""

    def __init__(self, size: Size) -> None:
        self.colour: Array = np.zeros((*size, 3), np.float32)
        self.alpha: Array = np.zeros(size, np.float32)
        self.dioptres: Array = np.zeros(size, np.float32)

    def paint(self, colour: Array, alpha: Array, depth: Array) -> None:
        """Cover what is there; colours stay unpremultiplied, so edges carry no fringe."""
        total = alpha + self.alpha * (1 - alpha)
        share = np.where(total > 1e-6, alpha / np.maximum(total, 1e-6), 0)[..., None]
        self.colour = self.colour * (1 - share) + colour * share
        self.dioptres = np.where(alpha >= 0.5 * total, depth, self.dioptres)
        self.alpha = total.astype(np.float32)

    def layer(self) -> Layer:
        """Return the layer in linear light."""
        rgb = srgb_to_linear(torch.from_numpy(np.ascontiguousarray(self.colour.transpose(2, 0, 1))))
        return Layer(
            rgb.float(),
            torch.from_numpy(self.alpha.astype(np.float32)),
            torch.from_numpy(np.clip(self.dioptres, 0, 20).astype(np.float32)),
        )


def _grid(size: Size) -> tuple[Array, Array]:
    """Return row and column, 0..1 of the height and of the width."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    return (rows + 0.5) / size[0], (columns + 0.5) / size[1]


def _background(rng: Generator, size: Size, plan: _Plan, photos: Photos) -> _Canvas:
    canvas = _Canvas(size)
    _, columns = _grid(size)
    wall = plain if rng.random() < 0.2 else fractal if rng.random() < 0.2 else None
    pixels = wall(rng, size) if wall else texture(rng, size, photos, 0.75)
    slant = rng.uniform(-1, 1) * min(2.0, plan.far) * (columns - 0.5)
    relief = 0.5 * min(1.0, plan.far) * (noise(rng, size, 2.5) - 0.5)
    canvas.paint(pixels, np.ones(size, np.float32), plan.far + slant + relief)
    return canvas


def _table(rng: Generator, size: Size, plan: _Plan, photos: Photos) -> _Canvas:
    """Return the ground plane, its texture in perspective and shaded towards the far edge."""
    canvas = _Canvas(size)
    rows, columns = _grid(size)
    depth = np.clip((rows - plan.horizon) / (1 - plan.horizon), 0, 1)
    flat = texture(rng, (2 * size[0], 2 * size[1]), photos, 0.4)
    scale = np.maximum(0.35 + 0.65 * depth, 0.05)
    v = np.clip(1 - (1 - 1 / scale) / (1 - 1 / 0.35), 0, 1) * (flat.shape[0] - 1)
    u = (0.5 + (columns - 0.5) * 0.35 / scale) * (flat.shape[1] - 1)
    pixels = _sample(flat, v, u) * (0.75 + 0.25 * depth[..., None])
    tilt = rng.uniform(-0.15, 0.15)
    edge = (plan.horizon - rows + tilt * (columns - 0.5)) * size[0]
    canvas.paint(pixels, coverage(edge), np.asarray(plan.ground(rows)))
    return canvas


def _sample(image: Array, rows: Array, columns: Array) -> Array:
    """Look up bilinearly, with edges clamped."""
    height, width = image.shape[:2]
    rows, columns = np.clip(rows, 0, height - 1.001), np.clip(columns, 0, width - 1.001)
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down, np.float32)


def _mirrored(x: Array) -> Array:
    """Fold a coordinate into 0..1 without a jump."""
    return np.asarray(1 - np.abs(np.mod(x, 2) - 1))


@dataclass(frozen=True)
class _Thing:
    """An object: centre, half sizes (fractions of height), dioptres, shape."""

    x: float
    y: float
    half_width: float
    half_height: float
    dioptres: float
    kind: str


def _standing(rng: Generator, plan: _Plan, aspect: float) -> _Thing:
    """Place an object on the table: near objects are lower in the frame and larger."""
    foot = rng.uniform(plan.horizon + 0.12, 1.05)
    dioptres = float(plan.ground(min(foot, 1.0)))
    tall = np.clip(rng.uniform(0.08, 0.3) * (0.5 + 0.1 * dioptres), 0.06, 0.45)
    kind = str(rng.choice(["ellipse", "blob", "box", "box", "polygon", "figure", "figure"]))
    wide = tall * rng.uniform(0.4, 1.1)
    return _Thing(rng.uniform(0, aspect), foot - tall, wide, tall, dioptres, kind)


def _floating(rng: Generator, near: float, far: float, aspect: float, half: float) -> _Thing:
    """Place clutter: leaves, twigs, parts of things that the frame cuts."""
    kind = str(rng.choice(SHAPES))
    wide, tall = half * rng.uniform(0.25, 1.0, 2)
    return _Thing(
        rng.uniform(0, aspect), rng.uniform(0, 1), wide, tall, rng.uniform(far, near), kind
    )


def _foliage(rng: Generator, plan: _Plan, aspect: float) -> list[_Thing]:
    """Return, in a third of the scenes, small leaves at all depths, in loose bunches."""
    if rng.random() > 1 / 3:
        return []
    leaves = []
    for _ in range(int(rng.integers(4, 8))):
        x, y, middle = rng.uniform(0, aspect), rng.uniform(0, 1), rng.uniform(plan.far, plan.near)
        for _ in range(int(rng.integers(6, 13))):
            tall = rng.uniform(0.04, 0.1) * (0.7 + 0.06 * middle)
            at = (float(np.clip(middle + rng.normal(0, 0.7), 0, 20)), "leaf")
            right, down = rng.normal(0, 0.12, 2)
            leaves.append(_Thing(x + right, y + down, rng.uniform(0.3, 0.6) * tall, tall, *at))
    return leaves


def _place(canvas: _Canvas, rng: Generator, thing: _Thing, photos: Photos, turn: float) -> None:
    """Paint one object with its texture, shading from one light, a highlight and a curved depth."""
    size = canvas.alpha.shape
    rows, columns = _grid((size[0], size[1]))
    angle = rng.uniform(-turn, turn)
    x = (columns * size[1] / size[0] - thing.x) * np.cos(angle) + (rows - thing.y) * np.sin(angle)
    y = (rows - thing.y) * np.cos(angle) - (columns * size[1] / size[0] - thing.x) * np.sin(angle)
    u, v = x / thing.half_width, y / thing.half_height
    alpha = coverage(shape(rng, u, v, thing.kind))
    flat = thing.kind in ("polygon", "leaf") or rng.random() < 0.25
    bulge = np.zeros_like(u) if flat else np.sqrt(np.clip(1 - 0.8 * (u * u + 0.5 * v * v), 0.02, 1))
    pixels = _skin(rng, thing, u, v, size[0], photos)
    light = rng.uniform(-0.5, 0.5, 2)
    shade = 0.75 + 0.35 * bulge + light[0] * u * 0.5 + light[1] * v * 0.3
    pixels = pixels * np.clip(shade, 0.2, 1.4)[..., None]
    if not flat and rng.random() < 0.6:
        spot = np.exp(-((u - light[0]) ** 2 + (v - light[1]) ** 2) / rng.uniform(0.003, 0.03))
        pixels = pixels + rng.uniform(0.2, 1.5) * spot[..., None]
    # an object of half-width w (in frame heights) at D dioptres bulges by about w·D towards us
    depth = thing.dioptres * (1 + 0.5 * min(thing.half_width, 0.4) * bulge)
    slant = rng.uniform(-0.25, 0.25) * thing.dioptres * thing.half_width * u
    canvas.paint(np.clip(pixels, 0, 4), alpha, np.clip(depth + slant, 0, 20))


def _skin(rng: Generator, thing: _Thing, u: Array, v: Array, height: int, photos: Photos) -> Array:
    """Paint a texture of the object's own size in pixels, so that small things carry detail."""
    zoom = rng.uniform(1.0, 1.6)
    high, wide = (
        max(24, int(2 * half * height * zoom)) for half in (thing.half_height, thing.half_width)
    )
    flat = texture(rng, (high, wide), photos, 0.5)
    u, v = np.clip(u, -1.2, 1.2), np.clip(v, -1.2, 1.2)
    if thing.kind in ("ellipse", "figure"):  # wrapped around: finer towards the edges
        u = np.arcsin(np.clip(u, -1, 1)) * (2 / np.pi)
    return _sample(flat, _mirrored(v / 2 + 0.5) * (high - 1), _mirrored(u / 2 + 0.5) * (wide - 1))


def _shadow(canvas: _Canvas, thing: _Thing) -> None:
    """Darken the table where an object stands."""
    height, width = canvas.alpha.shape
    rows, columns = _grid((height, width))
    u = (columns * width / height - thing.x) / (1.3 * thing.half_width)
    v = (rows - thing.y - thing.half_height) / (0.35 * thing.half_width)
    canvas.colour *= (1 - 0.55 * np.exp(-(u * u + v * v)).astype(np.float32))[..., None]


def _point_lights(rng: Generator, layer: Layer) -> None:
    """Add small spots far brighter than white: they become bokeh discs out of focus."""
    height, width = layer.alpha.shape
    for _ in range(int(rng.integers(3, 25))):
        row, column = int(rng.integers(1, height - 1)), int(rng.integers(1, width - 1))
        tint = torch.tensor(1 - 0.5 * rng.random(3), dtype=torch.float32)
        power = float(rng.uniform(2, 12))
        layer.rgb[:, row : row + 2, column : column + 2] += power * tint[:, None, None]


def make_scene(seed: int, size: Size = (256, 256), photos: Photos = ()) -> list[Layer]:
    """Return the layers of a scene, far to near; the first is opaque.

    size is (height, width); photos, [H, W, 3] uint8 RGB, are textures beside procedural ones.
    """
    rng = np.random.default_rng(seed)
    plan = _plan(rng)
    aspect = size[1] / size[0]
    canvases = [_background(rng, size, plan, photos)]
    things: list[_Thing] = []
    if plan.table:
        canvases.append(_table(rng, size, plan, photos))
        things = [_standing(rng, plan, aspect) for _ in range(rng.integers(4, 17))]
    else:
        count = int(rng.integers(5, 19))
        half = rng.uniform(0.15, 0.45)
        things = [_floating(rng, plan.near, plan.far, aspect, half) for _ in range(count)]
        things += _foliage(np.random.default_rng([seed, 3]), plan, aspect)
        if rng.random() < 0.4:  # a portrait: one large subject, low in the frame
            at = rng.uniform(0.3, 0.7) * aspect
            tall = rng.uniform(0.3, 0.5)
            things.append(_Thing(at, 1.05 - tall, 0.8 * tall, tall, plan.near, "figure"))
    things.sort(key=lambda thing: thing.dioptres)
    for group in _groups(things, 4):
        canvas = _Canvas(size)
        for thing in group:
            if plan.table:
                _shadow(canvases[1], thing)
            _place(canvas, rng, thing, photos, 0.15 if plan.table else np.pi)
        canvases.append(canvas)
    layers = _exposed([canvas.layer() for canvas in canvases], float(rng.uniform(0.16, 0.42)))
    if rng.random() < 0.2:
        _point_lights(rng, layers[0])
    return layers


def _exposed(layers: list[Layer], middle: float) -> list[Layer]:
    """Scale the light as a camera's automatic exposure does, to a mean of `middle` (linear)."""
    gain = float((middle / all_in_focus(layers).mean()).clamp(0.5, 4))
    return [Layer(layer.rgb * gain, layer.alpha, layer.dioptres) for layer in layers]


def _groups(things: list[_Thing], count: int) -> list[list[_Thing]]:
    """Return at most `count` layers of neighbours in depth: objects of one layer occlude when
    painted."""
    bounds = np.linspace(0, len(things), count + 1).astype(int)
    groups = [things[a:b] for a, b in pairwise(bounds)]
    return [group for group in groups if group]


def render_scene(seed: int, size: Size = (256, 256), photos: Photos = ()) -> Tensor:
    """Return the focal stack of a seed's scene, [9, 3, H, W] sRGB in [-1, 1]."""
    return photograph(make_scene(seed, size, photos), seed)


def photograph(layers: Sequence[Layer], seed: int) -> Tensor:
    """Return the focal stack of layers as some phone takes it, [9, 3, H, W] sRGB in [-1, 1].

    Between seeds the aperture varies by ±30 %, a third of them have 5 to 8 blades, JPEG quality and
    what near focus costs in light vary; every frame has its own sensor noise.
    """
    rng, body = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    aperture = Camera.aperture_mm * rng.uniform(*APERTURES)
    blades = int(body.integers(5, 9)) if body.random() < 1 / 3 else 0
    quality = int(body.integers(*JPEG_QUALITY, endpoint=True))
    linear = render_stack(layers, Camera(aperture_mm=aperture, blades=blades))
    gain = torch.linspace(0, 1, FRAMES) * body.uniform(*EXTENSION)
    stack = linear_to_srgb(linear * ((1 + gain) / (1 + gain.mean())).reshape(-1, 1, 1, 1))
    surroundings = box(stack, min(stack.shape[-2:]) // 16)
    stack = stack + body.uniform(*LOCAL_CONTRAST) * (stack - surroundings)
    grain = rng.standard_normal(tuple(stack.shape), dtype=np.float32) * np.float32(SENSOR_NOISE)
    pixels = light_to_uint8(stack + torch.from_numpy(grain))
    frames = [through_jpeg(frame, quality) for frame in pixels]
    return from_uint8(np.stack(frames))


def through_jpeg(frame: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """What is left of a frame [H, W, 3] in a JPEG file.

    Colour keeps its resolution: a photo is scaled down to a frame, and its JPEG's colour with it.
    """
    file = BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality, subsampling=0)
    with Image.open(file, formats=("JPEG",)) as image:
        return np.asarray(image)
