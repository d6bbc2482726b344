"""Thin-lens optics: from layers with colour, coverage and depth to a focal stack in linear light.

Depth is in dioptres (1/m) throughout: lens position and the radius of the circle of confusion are
both linear in it. Legend: T the 9 focal positions, C colour channels, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, cos, pi

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional as F

from pocketfocus.run.constants import FRAMES, check_position
from pocketfocus.run.errors import UserError

NEAREST_DIOPTRES = 20.0
SLICE_DIOPTRES = 1.25  # half a focal step: with it, blur radii repeat over slices and positions
_SUBPIXELS = 8
_EMPTY = 1e-4
_TABLE = 4096  # values of a tone curve
_TRIANGLE = 1.42  # corner radius of the triangle with the second moment of the unit disc


def dioptres(position: float) -> float:
    """Return the dioptres in focus at a focal position: 0 is 20 D (5 cm), 8 is 0 D (infinity)."""
    return NEAREST_DIOPTRES * (1.0 - position / (FRAMES - 1))


def distance(position: float) -> str:
    """Say in words how far away the focus is at a focal position: "5 cm" … "infinity"."""
    power = dioptres(position)
    return f"{100 / power:.0f} cm" if power > 0 else "infinity"


def one_hot(position: int) -> Tensor:
    """Return a focal position 0..8 as [1, 9]; UserError outside that range."""
    check_position(position)
    return F.one_hot(torch.tensor([position]), FRAMES).to(torch.float32)


@dataclass(frozen=True)
class Camera:
    """A fixed-aperture phone camera.

    The default aperture gives the circles of confusion measured on real phone stacks, whose radius
    grows by 0.40 to 0.45 px a focal step at 256 px (docs/realism.md).
    """

    aperture_mm: float = 1.9
    focal_mm: float = 4.2
    sensor_side_mm: float = 5.6  # the shorter one
    blades: int = 0

    def coc_radius_px(self, dioptre_difference: float, side_px: int) -> float:
        """Blur radius: A·f·|ΔD|/2 on the sensor (A, f in m), scaled to an image whose shorter side
        has `side_px` pixels."""
        radius_mm = 0.5 * self.aperture_mm * self.focal_mm * 1e-3 * abs(dioptre_difference)
        return radius_mm / self.sensor_side_mm * side_px


@dataclass
class Layer:
    """One surface, complete by itself: what it hides of the layers behind is theirs to fill in.

    rgb [3, H, W] linear light ≥ 0, alpha [H, W] in [0, 1], dioptres [H, W] ≥ 0.
    """

    rgb: Tensor
    alpha: Tensor
    dioptres: Tensor

    def to(self, device: torch.device | str) -> Layer:
        return Layer(self.rgb.to(device), self.alpha.to(device), self.dioptres.to(device))


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """Decode sRGB in [0, 1] to linear light in [0, 1] (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Encode linear light as sRGB (IEC 61966-2-1), both clipped to [0, 1]."""
    linear = linear.clamp(0, 1)
    high = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, high).clamp(max=1)


@dataclass(frozen=True)
class Shoulder:
    """How a phone's tone curve presses the brightest light together: what is l in a picture decoded
    as sRGB, in [0, 1], was l·(1 + strength·l^power), so that lights near white blur to more than a
    picture shows of them."""

    strength: float = 0.0
    power: float = 8.0

    def undone(self, linear: Tensor) -> Tensor:
        """Return the light ≥ 0 that a picture's linear values in [0, 1] stand for."""
        return linear * (1 + self.strength * linear**self.power)

    def applied(self, light: Tensor) -> Tensor:
        """Return the linear values in [0, 1] of light ≥ 0: the inverse of `undone`, by a table;
        brighter light than white's is white."""
        if not self.strength:
            return light.clamp(0, 1)
        values = torch.linspace(0, 1, _TABLE, device=light.device)
        lights = self.undone(values)
        after = torch.searchsorted(lights, light.contiguous()).clamp(1, _TABLE - 1)
        low, high = lights[after - 1], lights[after]
        return values[after - 1] + ((light - low) / (high - low)).clamp(0, 1) / (_TABLE - 1)


def disc_kernel(radius_px: float, blades: int = 0) -> Tensor:
    """Return the blur of a disc-shaped aperture, [K, K] float32 with K odd and energy 1.

    Its second moment E[x² + y²] is that of the ideal disc, r²/2, at every radius: binning a disc to
    pixels widens it by a twelfth per axis, too much where r is near one pixel, so the disc that is
    binned is narrower. It tends to a delta as the radius goes to 0. With `blades` ≥ 3 the aperture
    is a regular polygon of the same second moment.
    """
    return torch.from_numpy(_disc_kernel(round(float(radius_px), 4), blades).copy())


def blurred(images: Tensor, radius_px: float) -> Tensor:
    """Blur linear light [B, C, H, W] by a disc of confusion; edges are repeated."""
    kernel = disc_kernel(radius_px).to(images)
    half, channels = kernel.shape[-1] // 2, images.shape[1]
    padded = F.pad(images, (half,) * 4, mode="replicate")
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


@lru_cache(maxsize=1024)
def _disc_kernel(radius_px: float, blades: int) -> np.ndarray:
    reach = radius_px * (_TRIANGLE if blades else 1.0)
    half = ceil(reach) + 1
    target = radius_px**2 / 2
    low, high = 0.0, reach + 1.0
    for _ in range(18):
        middle = (low + high) / 2
        if _second_moment(_binned(middle, half, blades)) < target:
            low = middle
        else:
            high = middle
    return _binned(high, half, blades).astype(np.float32)


def _binned(radius: float, half: int, blades: int) -> np.ndarray:
    """Return the area of each pixel under the aperture, by subpixels with a soft edge: smooth in
    `radius`."""
    count = (2 * half + 1) * _SUBPIXELS
    axis = (np.arange(count) + 0.5) / _SUBPIXELS - half - 0.5
    x, y = np.meshgrid(axis, axis)
    if blades >= 3:
        angles = 2 * pi * np.arange(blades) / blades
        distance = np.max([x * np.cos(a) + y * np.sin(a) for a in angles], axis=0)
        distance /= cos(pi / blades)
    else:
        distance = np.hypot(x, y)
    inside = np.clip((radius - distance) * _SUBPIXELS + 0.5, 0, 1)
    pixels = inside.reshape(2 * half + 1, _SUBPIXELS, 2 * half + 1, _SUBPIXELS).sum((1, 3))
    if pixels.sum() <= 0:
        pixels[half, half] = 1
    return np.asarray(pixels / pixels.sum())


def _second_moment(kernel: np.ndarray) -> float:
    half = kernel.shape[0] // 2
    axis = np.arange(-half, half + 1) ** 2
    return float((kernel * (axis[:, None] + axis[None, :])).sum())


class _Blur:
    """Disc blurs of images of one size by multiplication in the Fourier domain."""

    def __init__(self, height: int, width: int, camera: Camera, device: torch.device) -> None:
        self.height, self.width, self.camera, self.device = height, width, camera, device
        self.side = min(height, width)
        widest = camera.coc_radius_px(NEAREST_DIOPTRES, self.side)
        self.pad = ceil(widest * (_TRIANGLE if camera.blades else 1.0)) + 2
        self.shape = tuple(
            next_fast_len(side + 2 * self.pad, real=True) for side in (height, width)
        )
        self._kernels: dict[float, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Turn [C, H, W] into its padded spectrum; edges are mirrored, so borders do not darken."""
        mirrored = self.pad < min(self.height, self.width)
        padded = F.pad(images[None], (self.pad,) * 4, mode="reflect" if mirrored else "replicate")
        spectrum: Tensor = torch.fft.rfft2(padded[0], s=self.shape)
        return spectrum

    def backward(self, spectrum: Tensor) -> Tensor:
        """Invert `forward`, cropped to [..., H, W]."""
        images: Tensor = torch.fft.irfft2(spectrum, s=self.shape)
        return images[..., self.pad : self.pad + self.height, self.pad : self.pad + self.width]

    def kernel(self, dioptre_difference: float) -> Tensor:
        """Return the spectrum of the disc of confusion of what is so much nearer than the focus.

        Real, where the aperture is symmetric. One with an odd number of blades is seen turned by
        180° on one side of the focus, where rays have crossed: the conjugate spectrum.
        """
        key = round(abs(dioptre_difference), 3)
        if key not in self._kernels:
            radius = self.camera.coc_radius_px(key, self.side)
            disc = disc_kernel(radius, self.camera.blades).to(self.device)
            half = disc.shape[0] // 2
            canvas = disc.new_zeros(self.shape)
            canvas[: disc.shape[0], : disc.shape[1]] = disc
            spectrum = torch.fft.rfft2(canvas.roll((-half, -half), (0, 1)))
            self._kernels[key] = spectrum if self.camera.blades % 2 else spectrum.real
        found = self._kernels[key]
        return found.conj() if dioptre_difference < 0 and found.is_complex() else found


def _memberships(layer: Layer) -> list[tuple[float, Tensor]]:
    """Return (plane in dioptres, weight [H, W]) per non-empty plane; weights interpolate and sum to
    1."""
    steps = layer.dioptres / SLICE_DIOPTRES
    visible = steps[layer.alpha > _EMPTY]
    if visible.numel() == 0:
        return []
    # a constant layer is its own single plane: exact, and in focus untouched
    if float(visible.max() - visible.min()) < 1e-4:
        return [(float(visible[0]) * SLICE_DIOPTRES, torch.ones_like(steps))]
    first, last = int(visible.min().floor()), int(visible.max().ceil())
    planes = ((n, (1 - (steps - n).abs()).clamp(min=0)) for n in range(first, last + 1))
    return [
        (n * SLICE_DIOPTRES, weight)
        for n, weight in planes
        if float((weight * layer.alpha).max()) > _EMPTY
    ]


def _defocused(layer: Layer, blur: _Blur, positions: Sequence[float]) -> Tensor:
    """Render a layer alone at each position: [T, 4, H, W], premultiplied colour and coverage."""
    slices = _memberships(layer)
    if not slices:
        height, width = layer.alpha.shape
        return layer.rgb.new_zeros(len(positions), 4, height, width)
    content = torch.cat([layer.rgb * layer.alpha, layer.alpha[None]])
    spectra = [(plane, blur.forward(content * weight)) for plane, weight in slices]
    whole = blur.forward(layer.alpha[None])
    frames = []
    for position in positions:
        focus = dioptres(position)
        total = torch.zeros_like(spectra[0][1])
        for plane, spectrum in spectra:
            total += spectrum * blur.kernel(plane - focus)
        widest = max((plane - focus for plane, _ in slices), key=abs)
        frames.append(blur.backward(torch.cat([total, whole * blur.kernel(widest)])))
    images = torch.stack(frames).clamp(min=0)
    return _without_seams(images[:, :4], images[:, 4:])


def _without_seams(images: Tensor, widest: Tensor) -> Tensor:
    """Make coverage 1 well inside a surface, where slices blurred differently leave seams.

    images [T, 4, H, W]; widest [T, 1, H, W]: all of the layer's coverage under its widest blur,
    1 exactly where no blur of the layer reaches past its edge.
    """
    alpha = images[:, 3:]
    inside = ((widest - 0.9) / 0.1).clamp(0, 1)
    inside = inside * inside * (3 - 2 * inside)
    wanted = alpha.clamp(max=1) * (1 - inside) + inside
    return images * torch.where(alpha > _EMPTY, wanted / alpha.clamp(min=_EMPTY), 1.0)


def all_in_focus(layers: Sequence[Layer]) -> Tensor:
    """Return linear light [3, H, W] of what a pinhole would see of layers, far to near."""
    image = layers[0].rgb
    for layer in layers[1:]:
        image = layer.rgb * layer.alpha + image * (1 - layer.alpha)
    return image


def render_stack(
    layers: Sequence[Layer], camera: Camera, positions: Sequence[float] = range(FRAMES)
) -> Tensor:
    """Return the focal stack of a scene, [T, 3, H, W] in linear light, one frame per focal
    position.

    layers: far to near, each occluding those before it; the first must be opaque everywhere. Each
    is cut softly into planes of equal dioptres, blurred by each plane's disc of confusion with
    colour premultiplied by coverage, and composited 'over' the layers behind. UserError without
    layers, with layers of unequal size, or with a first layer that is not opaque.
    """
    if not layers:
        raise UserError("a scene needs at least one layer, got none: add an opaque background")
    height, width = layers[0].alpha.shape
    for layer in layers:
        if layer.rgb.shape != (3, height, width) or layer.dioptres.shape != (height, width):
            raise UserError(
                f"a layer's colour is {tuple(layer.rgb.shape)} and its depth "
                f"{tuple(layer.dioptres.shape)}, the scene is {height}x{width}: make them equal"
            )
    if float(layers[0].alpha.min()) < 1 - 1e-3:
        raise UserError("the farthest layer must be opaque everywhere: set its alpha to 1")
    blur = _Blur(height, width, camera, layers[0].rgb.device)
    background = _defocused(layers[0], blur, positions)
    image = background[:, :3] / background[:, 3:].clamp(min=_EMPTY)
    for layer in layers[1:]:
        front = _defocused(layer, blur, positions)
        image = front[:, :3] + image * (1 - front[:, 3:])
    return image
