"""Seeded textures and shapes that procedural scenes are made of.

Textures are sRGB arrays [H, W, 3] in [0, 1]; shapes are coverages [H, W] in [0, 1] with antialiased
edges. Every function takes a numpy Generator and draws from it in a fixed order.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pocketfocus.run.constants import Size

Array = NDArray[Any]


def noise(rng: Generator, size: Size, slope: float) -> Array:
    """Return Gaussian noise with amplitude spectrum 1/f^slope, equalised to [0, 1]."""
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal(size)) / np.maximum(frequency, 2 / width) ** slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=size)
    return np.asarray(np.clip(0.5 + field / (4.5 * field.std() + 1e-9), 0, 1), np.float32)


def colour(rng: Generator, saturation: float = 0.7) -> Array:
    """Return a random colour, [3]; brightness spreads over the whole range."""
    hue = rng.random(3)
    grey = rng.beta(0.8, 0.8)
    strength = saturation * rng.random()
    return np.clip(grey * (1 - strength) + strength * hue * (0.5 + grey), 0, 1).astype(np.float32)


def palette(rng: Generator, field: Array, count: int) -> Array:
    """Map a field in [0, 1] through `count` random colours: [H, W, 3]."""
    base = colour(rng)
    stops = np.stack([base, *(0.25 * base + 0.75 * colour(rng, 1.0) for _ in range(count - 1))])
    knots = np.linspace(0.15, 0.85, count)
    channels = [np.interp(field, knots, stops[:, c]) for c in range(3)]
    return np.asarray(np.stack(channels, -1), np.float32)


def photo_crop(rng: Generator, size: Size, photos: Sequence[NDArray[np.uint8]]) -> Array:
    """Cut a random crop of a random photo, resized, at times flipped, with a gain per channel."""
    photo = photos[int(rng.integers(len(photos)))]
    height, width = size
    fit = min(photo.shape[0] / height, photo.shape[1] / width)
    scale = fit * rng.uniform(0.6, 1.0)
    rows, columns = max(2, round(height * scale)), max(2, round(width * scale))
    top = rng.integers(photo.shape[0] - rows + 1) if photo.shape[0] > rows else 0
    left = rng.integers(photo.shape[1] - columns + 1) if photo.shape[1] > columns else 0
    crop = Image.fromarray(photo[top : top + rows, left : left + columns])
    pixels = np.asarray(crop.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 255
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.clip(pixels * rng.uniform(0.75, 1.2, 3).astype(np.float32), 0, 1)


def fractal(rng: Generator, size: Size) -> Array:
    """Paint clouds, stone, foliage: multi-octave noise through a palette."""
    return palette(rng, noise(rng, size, rng.uniform(0.7, 1.6)), int(rng.integers(3, 7)))


def stripes(rng: Generator, size: Size) -> Array:
    """Paint wavy stripes, from cloth to wood grain."""
    x, y = _rotated(rng, size)
    warp = noise(rng, size, 2.0) * rng.uniform(0, 0.25)
    period = rng.uniform(0.025, 0.2)
    wave = np.sin(2 * np.pi * (x + warp + 0.05 * y) / period) * rng.uniform(1, 6)
    return palette(rng, _with_grain(rng, 0.5 + 0.35 * np.tanh(wave)), 2)


def tiles(rng: Generator, size: Size) -> Array:
    """Paint a grid of tiles or bricks with grout, each tile of its own shade."""
    x, y = _rotated(rng, size)
    cell = rng.uniform(0.06, 0.22)
    rows = np.floor(y / cell)
    x = x + (rows % 2) * cell * rng.choice([0.0, 0.5])
    columns = np.floor(x / (cell * rng.choice([1.0, 1.0, 2.0])))
    shade = np.sin(rows * 12.9898 + columns * 78.233) * 43758.5453
    shade = shade - np.floor(shade)
    line = np.minimum(np.mod(x, cell), np.mod(y, cell)) < max(0.006, cell * 0.06)
    base = palette(rng, _with_grain(rng, 0.2 + 0.6 * shade), 3)
    return np.where(line[..., None], colour(rng), base).astype(np.float32)


def dots(rng: Generator, size: Size) -> Array:
    """Paint regular dots on a plain ground."""
    x, y = _rotated(rng, size)
    cell = rng.uniform(0.04, 0.16)
    distance = np.hypot(np.mod(x, cell) - cell / 2, np.mod(y, cell) - cell / 2)
    edge = 1 / min(size)
    field = np.clip(0.5 + (rng.uniform(0.2, 0.4) * cell - distance) / edge, 0, 1)
    return palette(rng, _with_grain(rng, 0.15 + 0.7 * field), 2)


def print_page(rng: Generator, size: Size) -> Array:
    """Print lines of text in Pillow's own font, as on a label, a book or a screen."""
    height, width = size
    paper, ink = colour(rng, 0.3) * 0.35 + 0.65, colour(rng) * 0.4
    if rng.random() < 0.25:
        paper, ink = ink, paper
    page = Image.new("L", (2 * width, 2 * height), 0)
    draw = ImageDraw.Draw(page)
    points = int(rng.integers(max(8, min(size) // 14), max(12, min(size) // 5)))
    font = ImageFont.load_default(points)
    letters = np.array(list(string.ascii_letters + string.digits + "     "))
    top = int(rng.integers(0, points))
    while top < 2 * height:
        line = "".join(rng.choice(letters, max(4, 4 * width // points)))
        draw.text((int(rng.integers(0, points)), top), line, fill=255, font=font)
        top += int(points * 1.25)
    small = page.resize((width, height), Image.Resampling.LANCZOS)
    mask = (np.asarray(small, np.float32) / 255)[..., None]
    shade = 0.9 + 0.1 * noise(rng, size, 1.5)[..., None]
    return np.asarray((paper * (1 - mask) + ink * mask) * shade, np.float32)


def plain(rng: Generator, size: Size) -> Array:
    """Paint one smooth colour with a gradient and a little grain: wood, plastic, wall, sky."""
    x, _ = _rotated(rng, size)
    span = (x - x.min()) / max(float(np.ptp(x)), 1e-6)
    grain = 0.06 * (noise(rng, size, 0.6) - 0.5)
    shade = 1 + rng.uniform(-0.4, 0.4) * (span - 0.5) + grain
    return np.asarray(np.clip(colour(rng)[None, None] * shade[..., None], 0, 1).astype(np.float32))


TEXTURES: tuple[tuple[float, Callable[[Generator, Size], Array]], ...] = (
    (0.28, fractal),
    (0.13, stripes),
    (0.15, tiles),
    (0.08, dots),
    (0.18, print_page),
    (0.18, plain),
)


def texture(
    rng: Generator, size: Size, photos: Sequence[NDArray[np.uint8]] = (), photo_share: float = 0.5
) -> Array:
    """Return a photo crop with probability `photo_share` when there are photos, else a procedural
    one."""
    if photos and rng.random() < photo_share:
        return photo_crop(rng, size, photos)
    weights = np.array([weight for weight, _ in TEXTURES])
    return TEXTURES[rng.choice(len(TEXTURES), p=weights / weights.sum())][1](rng, size)


def _rotated(rng: Generator, size: Size) -> tuple[Array, Array]:
    """Return pixel coordinates in units of the shorter side, turned by a random angle."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32) / min(size)
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _with_grain(rng: Generator, field: Array) -> Array:
    height, width = field.shape
    return np.clip(field + 0.12 * (noise(rng, (height, width), 1.0) - 0.5), 0, 1)


def coverage(implicit: Array) -> Array:
    """Return antialiased coverage of {f < 0}: the distance to the edge is about f / |∇f| pixels."""
    down, right = np.gradient(implicit)
    return np.asarray(np.clip(0.5 - implicit / np.maximum(np.hypot(down, right), 1e-6), 0, 1))


def shape(rng: Generator, u: Array, v: Array, kind: str) -> Array:
    """Return implicit function, negative inside, of a shape within about the unit square |u|, |v| ≤
    1."""
    if kind == "ellipse":
        return np.hypot(u, v) - 1
    if kind == "blob":
        angle = np.arctan2(v, u)
        edge = np.ones_like(u)
        for n in range(2, 7):
            edge += rng.uniform(-0.3, 0.3) / n * np.cos(n * angle + rng.uniform(0, 6.28))
        return np.hypot(u, v) - 0.9 * edge
    if kind == "box":
        corner = rng.uniform(0.0, 0.35)
        a = np.maximum(np.abs(u) - 1 + corner, 0)
        b = np.maximum(np.abs(v) - 1 + corner, 0)
        inner = np.minimum(np.maximum(np.abs(u), np.abs(v)) - 1 + corner, 0)
        return np.hypot(a, b) + inner - corner
    if kind == "polygon":
        sides = int(rng.integers(3, 8))
        turn = rng.uniform(0, 6.28)
        angles = turn + (np.arange(sides) + rng.uniform(-0.2, 0.2, sides)) * 2 * np.pi / sides
        return np.asarray(np.max([u * np.cos(a) + v * np.sin(a) for a in angles], axis=0) - 0.8)
    if kind == "leaf":
        bend = u + 0.3 * rng.uniform(-1, 1) * v * v
        outline = 0.6 * np.sqrt(np.clip(1 - v * v, 0, None)) * (1 - 0.4 * v)
        return np.asarray(np.maximum(np.abs(bend) - outline, np.abs(v) - 1))
    if kind == "figure":
        head = np.hypot(u / 0.36, (v + 0.66) / 0.34) - 1
        body = np.hypot(u / rng.uniform(0.6, 0.95), (v - 0.45) / 0.8) - 1
        neck = np.maximum(np.abs(u) - 0.16, np.abs(v + 0.35) - 0.25)
        return np.asarray(np.minimum(np.minimum(head, body), neck))
    raise ValueError(f"unknown shape {kind!r}")


SHAPES = ("ellipse", "blob", "box", "polygon", "leaf", "figure")
