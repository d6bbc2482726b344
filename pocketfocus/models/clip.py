"""What CLIP sees of a photo: 224 pixels a side, normalised, in the form a reference was made with.

Legend: B batch, H, W pixels of photos in [-1,1]; S = 224.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LEAST_SIGMA, LEAST_TAPS = 1e-3, 3  # where nothing is to be blurred


def published_pixels(photos: Tensor) -> Tensor:
    """Make CLIP's pixels [B,3,S,S] as Learn2Refocus's published inference does.

    CLIP's mean and deviation are those of pixels in [0,1]; the published inference applies them to
    pixels in [-1,1] as they are. Its results were made so, and so are ours.
    """
    return normalised(resized(photos))


def training_pixels(photos: Tensor) -> Tensor:
    """Make them as Learn2Refocus's training does, and Stable Video Diffusion: brought to [0,1]
    before CLIP's mean and deviation are applied."""
    return normalised((resized(photos) + 1) / 2)


def own_pixels(photos: Tensor) -> Tensor:
    """Make them as the small reference was trained: PyTorch's antialiased resize, in [0,1]."""
    size = (SIDE, SIDE)
    pixels = F.interpolate(photos, size, mode="bicubic", antialias=True, align_corners=False)
    return normalised((pixels + 1) / 2)


def normalised(pixels: Tensor) -> Tensor:
    """Apply CLIP's mean and deviation."""
    mean, std = pixels.new_tensor(MEAN), pixels.new_tensor(STD)
    return (pixels - mean[:, None, None]) / std[:, None, None]


def resized(photos: Tensor) -> Tensor:
    """Resize as diffusers' pipeline of Stable Video Diffusion: a Gaussian, then a bicubic grid
    whose corners are those of the photo. [B,3,H,W] -> [B,3,S,S]."""
    blurred = _blurred(_blurred(photos, -1), -2)
    return F.interpolate(blurred, (SIDE, SIDE), mode="bicubic", align_corners=True)


def _blurred(photos: Tensor, dim: int) -> Tensor:
    """Blur along one dimension by a Gaussian of half the excess of its scale over 1, cut off at two
    deviations, edges reflected."""
    sigma = max((photos.shape[dim] / SIDE - 1) / 2, LEAST_SIGMA)
    radius = int(max(4 * sigma, LEAST_TAPS)) // 2
    offsets = torch.arange(-radius, radius + 1).to(photos)
    weights = (-offsets.square() / (2 * sigma**2)).exp()
    kernel = (weights / weights.sum())[None, None, None].transpose(dim, -1)
    padding = (radius, radius, 0, 0) if dim == -1 else (0, 0, radius, radius)
    padded = F.pad(photos, padding, mode="reflect")
    channels = photos.shape[1]
    return F.conv2d(padded, kernel.expand(channels, -1, -1, -1), groups=channels)
