"""Undo how the frames of a real focal stack move against each other, before they are compared.

As a lens focuses, its magnification and its distortion change (focus breathing), and a hand is
never still. Each frame is moved onto its neighbour's registered one by the seven numbers of an
affine map and the cubic term of Brown's radial distortion, u(x) = t + A·x + k·|x|²·x, from the
middle of the stack outwards: Gauss-Newton on luma, coarse to fine (Lucas and Kanade 1981; Baker and
Matthews, IJCV 2004). Neighbours are a focal step apart, so that their blur hardly differs.

Legend: N frames, H, W. Places x are in halves of the shorter side, from the centre, in the
proportions that the lens saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketfocus.photos.focusmap import box, luma
from pocketfocus.run.constants import Size

SIDES = (80, 160, 320)  # pixels at the shorter side that motion is found at
ROUNDS = 3  # at each of them
SMOOTHED = 1  # radius of the mean that is taken twice before comparing
MARGIN = 0.03  # of a side, at whose edges nothing is compared
FARTHEST = 0.15  # the largest number that is believed: 15 % of half the shorter side
MOTION = 7
VERSION = 1  # to be raised when registered frames change


def registered(frames: Tensor, aspect: float | None = None) -> Tensor:
    """Return frames [N, 3, H, W] in [-1, 1] as the lens would show them in the middle one's place.

    `aspect` is the width over the height of what the lens saw; None where it is the frames' own.
    The middle frame stays as it is, and so do frames whose motion cannot be told.
    """
    return undone(frames, motion(frames, aspect), aspect)


def undone(frames: Tensor, found: Tensor, aspect: float | None = None) -> Tensor:
    """Return `registered` frames by the motion [N, 7] that was found of them."""
    return torch.stack([moved(frame, n, aspect) for frame, n in zip(frames, found, strict=True)])


def motion(frames: Tensor, aspect: float | None = None) -> Tensor:
    """Return the seven numbers t_x, t_y, A_xx, A_xy, A_yx, A_yy, k by frame, [N, 7]: where, beside
    its own place x, a frame shows what the middle one shows at x. Zeros where it cannot be told."""
    found = torch.zeros(len(frames), MOTION)
    sizes = [torch.stack([_reduced(frame, side) for frame in frames]) for side in SIDES]
    middle = len(frames) // 2
    for near, after in [
        *((at, at + 1) for at in range(middle, len(frames) - 1)),
        *((at, at - 1) for at in range(middle, 0, -1)),
    ]:
        pairs = [(size[after], moved(size[near], found[near], aspect)) for size in sizes]
        found[after] = _found(pairs, found[near], aspect)
    return found


def farthest_px(found: Tensor, size: Size, aspect: float | None = None) -> float:
    """Return by how many pixels frames of a size move, a root mean square over places of the frame
    that moves most."""
    places, (wide, high) = _places(size, aspect), _reach(size, aspect)
    pixels = torch.tensor([size[1] / wide / 2, size[0] / high / 2])[:, None, None]
    far = [(_shift(each, places) * pixels).square().sum(0).mean().sqrt() for each in found]
    return float(max(far))


def moved(image: Tensor, numbers: Tensor, aspect: float | None = None) -> Tensor:
    """Return an image [C, H, W] with every place showing what it showed where `motion`'s seven
    numbers say; edges are repeated."""
    if not bool(numbers.any()):
        return image
    size = (image.shape[-2], image.shape[-1])
    at = _places(size, aspect)
    at = at + _shift(numbers, at)
    grid = (at / torch.tensor(_reach(size, aspect))[:, None, None]).movedim(0, -1)[None]
    found = F.grid_sample(
        image[None], grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return found[0].clamp(-1, 1)


def _reach(size: Size, aspect: float | None) -> tuple[float, float]:
    """Return how far the edges are from the centre, along x and y."""
    seen = aspect or size[1] / size[0]
    return max(1.0, seen), max(1.0, 1 / seen)


def _places(size: Size, aspect: float | None) -> Tensor:
    """Return x and y of every pixel's centre, [2, H, W]."""
    sides, reach = (size[1], size[0]), _reach(size, aspect)
    axes = [
        ((torch.arange(n) + 0.5) / n * 2 - 1) * far for n, far in zip(sides, reach, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="xy"))


def _shift(numbers: Tensor, places: Tensor) -> Tensor:
    """Return u(x) [2, H, W] at places."""
    x, y = places
    t, a, k = numbers[:2], numbers[2:6].reshape(2, 2), numbers[6]
    radial = k * (x * x + y * y)
    return torch.stack([t[n] + a[n, 0] * x + a[n, 1] * y + radial * places[n] for n in (0, 1)])


def _found(pairs: Sequence[tuple[Tensor, Tensor]], start: Tensor, aspect: float | None) -> Tensor:
    """Return the seven numbers that bring frames onto targets, both [1, h, w] and from small to
    large, from a first guess; the guess itself where nothing is found that brings them nearer."""
    numbers = start
    for frame, target in pairs:
        for _ in range(ROUNDS):
            step = _step(frame, target, numbers, aspect)
            if step is None:
                return start
            numbers = numbers + step
    if float(numbers.abs().max()) > FARTHEST:
        return start
    errors = [_difference(*pairs[-1], each, aspect) for each in (start, numbers)]
    return numbers if errors[1] < errors[0] else start


def _reduced(image: Tensor, side: int) -> Tensor:
    """Return luma [1, h, w] with `side` pixels at the shorter side, smoothed."""
    grey = luma(image[None])
    scale = min(1.0, side / min(grey.shape[-2:]))
    size = [max(8, round(length * scale)) for length in grey.shape[-2:]]
    small = F.interpolate(grey, size, mode="bilinear", antialias=True)
    return box(box(small, SMOOTHED), SMOOTHED)[0]


def _step(image: Tensor, target: Tensor, numbers: Tensor, aspect: float | None) -> Tensor | None:
    """Return the Gauss-Newton step of the seven numbers, light's gain and offset free; None where
    there is too little to see."""
    now = moved(image, numbers, aspect)[0]
    x, y = _places((now.shape[0], now.shape[1]), aspect)
    down, right = torch.gradient(now)
    right = right / (x[0, 1] - x[0, 0])
    down = down / (y[1, 0] - y[0, 0])
    radial = (right * x + down * y) * (x * x + y * y)
    parts = [right, down, right * x, right * y, down * x, down * y, radial, now, torch.ones_like(x)]
    system = torch.stack([_inner(part).reshape(-1) for part in parts], -1).double()
    missing = _inner(target[0] - now).reshape(-1, 1).double()
    normal = system.T @ system
    if float(torch.linalg.cond(normal)) > 1e12:
        return None
    return torch.linalg.solve(normal, system.T @ missing)[:MOTION, 0].float()


def _difference(image: Tensor, target: Tensor, numbers: Tensor, aspect: float | None) -> float:
    now, wanted = _inner(moved(image, numbers, aspect)[0]), _inner(target[0])
    return float(((now - now.mean()) - (wanted - wanted.mean())).square().mean())


def _inner(image: Tensor) -> Tensor:
    """Return an image [H, W] without its margin."""
    rows, columns = (max(1, round(MARGIN * side)) for side in image.shape)
    return image[rows:-rows, columns:-columns]
