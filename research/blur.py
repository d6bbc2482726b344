"""How much, in what shape and how exactly stacks blur from frame to frame: real ones and rendered.

    python -m pocketfocus.research.blur learn2refocus-sample rgbd:RGBD

Pictures are those that the lens saw, `SIDE` pixels wide at their shorter side. In every tile the
frame that is sharpest there is compared with those a few positions away: the Gaussian that turns
the spectrum of the one into that of the other says how wide the blur is along x and along y, and
what share of the other's energy follows from the one (coherence) how exactly blur explains it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy import ndimage
from scipy.optimize import least_squares
from torch import Tensor

from pocketfocus.benchmarks.truth import source_name
from pocketfocus.data.datasets import TEST, Request, is_rendered, is_rgbd, open_source
from pocketfocus.data.optics import srgb_to_linear
from pocketfocus.data.stacks import FocalStack, say_skipped
from pocketfocus.photos.focusmap import luma
from pocketfocus.research.focal_steps import Array, resized
from pocketfocus.run.constants import FRAMES, POSITIONS, Size
from pocketfocus.run.errors import UserError, reported

SIDE = 320  # pixels
TILE, STRIDE = 64, 48  # pixels
APART = (2, 3, 4, 5)  # positions between the frames compared
TEXTURED = 3e-4  # least variance of a tile's Laplacian where it is sharpest
EXPLAINED = 0.7  # of the difference of two tiles, below which they are left out
FITTED = (0.15, 1.2)  # radians a pixel
BANDS = (FITTED[0], 0.3, 0.5, 0.75, 1.0, 1.4)  # bounds of those whose coherence is given
HEADER = (
    "| stacks | positions apart | tiles | blur, px a step | x / y | moved, px | coherence by band |"
)


@dataclass(frozen=True)
class Blurred:
    """What a tile became `apart` positions away: the standard deviations of its blur along x and y
    and how far it moved, in pixels; by band the energy of both tiles [K] and what they have in
    common."""

    apart: int
    wide: float
    high: float
    moved: float
    sharp: Array
    soft: Array
    common: Array


_axis = 2 * np.pi * np.fft.fftfreq(TILE)
_y, _x = np.meshgrid(_axis, _axis, indexing="ij")
_frequency = np.hypot(_x, _y)
_fitted = (_frequency > FITTED[0]) & (_frequency < FITTED[1])
_window = np.outer(np.hanning(TILE), np.hanning(TILE))


def study(frames: Tensor) -> list[Blurred]:
    """Compare the tiles of a stack, sRGB [9, 3, H, W] in [-1, 1]."""
    light = srgb_to_linear(luma(frames))[:, 0].double().numpy()
    height, width = light.shape[1:]
    found = []
    for top in range(0, height - TILE + 1, STRIDE):
        for left in range(0, width - TILE + 1, STRIDE):
            tiles = light[:, top : top + TILE, left : left + TILE]
            detail = [float(ndimage.laplace(tile)[4:-4, 4:-4].var()) for tile in tiles]
            best = int(np.argmax(detail))
            others = [best + sign * apart for apart in APART for sign in (-1, 1)]
            if detail[best] >= TEXTURED:
                pairs = [(at, tiles[at]) for at in others if 0 <= at < len(tiles)]
                found += [_compared(tiles[best], soft, abs(at - best)) for at, soft in pairs]
    return [each for each in found if each is not None]


def _compared(sharp: Array, soft: Array, apart: int) -> Blurred | None:
    """Fit variances along x and y and their covariance, a shift and a gain; None for a pair of
    which they explain too little."""
    first, second = (np.fft.fft2((tile - tile.mean()) * _window) for tile in (sharp, soft))
    scale = np.sqrt((np.abs(first[_fitted]) ** 2).mean())

    def error(given: Array) -> Array:
        wide, high, both, right, down, gain = given
        blur = np.exp(-0.5 * (wide * _x**2 + high * _y**2 + 2 * both * _x * _y))
        made = first * blur * gain * np.exp(1j * (_x * right + _y * down))
        off = (second - made)[_fitted] / scale
        return np.concatenate([off.real, off.imag])

    fit = least_squares(error, [2.0, 2.0, 0.0, 0.0, 0.0, 1.0])
    before = (np.abs((second - first)[_fitted] / scale) ** 2).sum()
    if 1 - 2 * fit.cost / before < EXPLAINED:
        return None
    wide, high = np.sqrt(np.clip(fit.x[:2], 0, None))
    energies = (np.abs(first) ** 2, np.abs(second) ** 2, (second * first.conj()).real)
    moved = float(np.hypot(*fit.x[3:5]))
    return Blurred(apart, float(wide), float(high), moved, *map(_by_band, energies))


def _by_band(energy: Array) -> Array:
    within = [(low < _frequency) & (_frequency <= high) for low, high in pairwise(BANDS)]
    return np.array([energy[band].sum() for band in within])


def rows(name: str, found: Sequence[Blurred]) -> list[str]:
    """The rows of the table, one for each number of positions apart."""
    lines = []
    for apart in APART:
        some = [each for each in found if each.apart == apart]
        if not some:
            continue
        step = np.median([np.hypot(each.wide, each.high) / np.sqrt(2) / apart for each in some])
        ratio = np.median([each.wide / max(each.high, 0.1) for each in some])
        moved = np.median([each.moved for each in some])
        sharp, soft = (np.sum([getattr(e, part) for e in some], 0) for part in ("sharp", "soft"))
        common = np.sum([each.common for each in some], 0)
        shares = " ".join(f"{share:.2f}" for share in common**2 / (sharp * soft))
        figures = f"{len(some)} | {step:.3f} | {ratio:.2f} | {moved:.2f}"
        lines.append(f"| {name} | {apart} | {figures} | {shares} |")
    return lines


def at_all_positions(stacks: Iterable[FocalStack]) -> Iterator[FocalStack]:
    """Yield the stacks whose frames are at the whole positions, and say that others are skipped."""
    for stack in stacks:
        if stack.positions == POSITIONS:
            yield stack
        else:
            say_skipped(stack.name, f"frames at 0 to {FRAMES - 1} are needed")


def as_seen(stack: FocalStack) -> Tensor:
    """Frames in the proportions that the lens saw, `SIDE` pixels at their shorter side."""
    height, width = stack.frames.shape[-2:]
    aspect = stack.aspect or width / height
    return resized(stack.frames, _sides(aspect))


def _sides(aspect: float) -> Size:
    return (round(SIDE / aspect), SIDE) if aspect < 1 else (SIDE, round(SIDE * aspect))


@reported("blur")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of the sources."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketfocus.research.blur", description=__doc__.splitlines()[0]
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="as `evaluate --stacks`")
    parser.add_argument("--scenes", type=int, default=24, help="to render of each source")
    options = parser.parse_args(arguments)
    print(f"{HEADER}\n| --- |{' ---: |' * 5} --- |")
    for spec in options.sources:
        size = (SIDE, SIDE) if is_rgbd(spec) else _sides(4 / 3)
        own = size if is_rendered(spec) else None
        source = open_source(spec, Request(options.scenes, own, TEST, phone_width=SIDE))
        with torch.inference_mode():
            stacks = at_all_positions(source)
            found = [each for stack in stacks for each in study(as_seen(stack))]
        if not found:
            raise UserError(f"{spec} has too little that is sharp: give stacks with more texture")
        print("\n".join(rows(source_name(spec), found)), flush=True)


if __name__ == "__main__":
    main()
