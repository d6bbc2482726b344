"""LPIPS and DISTS: distances between images as VGG16 sees them, where its weights are on disk.

torchmetrics brings what both have learnt beside VGG16, and needs torchvision for that itself.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfocus.benchmarks.metric_weights import fill

PREFIX = "features."
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
LPIPS_MEAN, LPIPS_STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of [-1, 1]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of [0, 1]
EPSILON = 1e-6  # of DISTS' ratios


class Perceptual:
    """Distances between images [1,3,H,W] in [-1, 1] by the VGG16 of a file; 0 is the same.

    UserError where the file is damaged, or of another network.
    """

    def __init__(self, path: Path) -> None:
        self._vgg = vgg16(path)
        heads, weights = _bundled("lpips_models/vgg.pth"), _bundled("dists_models/weights.pt")
        self._heads = [heads[f"lin{n}.model.1.weight"] for n in range(len(BLOCKS))]
        whole = weights["alpha"].sum() + weights["beta"].sum()
        channels = [3, *(block[-1] for block in BLOCKS)]
        self._alpha, self._beta = (
            torch.split(weights[name] / whole, channels, dim=1) for name in ("alpha", "beta")
        )

    @torch.inference_mode()
    def lpips(self, made: Tensor, truth: Tensor) -> float:
        """Return the distance of features of unit length (Zhang et al. 2018, version 0.1)."""
        pair = _standardized(torch.cat([made, truth]), LPIPS_MEAN, LPIPS_STD)
        total = 0.0
        for stage, head in zip(self._stages(pair, is_lpips=True), self._heads, strict=True):
            a, b = (stage / (1e-8 + (stage**2).sum(1, keepdim=True)).sqrt()).chunk(2)
            total += float((head * (a - b) ** 2).sum(1).mean())
        return total

    @torch.inference_mode()
    def dists(self, made: Tensor, truth: Tensor) -> float:
        """Return the distance of means and of structure in all channels (Ding et al. 2020)."""
        pair = torch.cat([made, truth]) / 2 + 0.5
        stages = self._stages(_standardized(pair, IMAGENET_MEAN, IMAGENET_STD), is_lpips=False)
        alike = 0.0
        for stage, alpha, beta in zip([pair, *stages], self._alpha, self._beta, strict=True):
            mean = stage.mean((2, 3), keepdim=True)
            (mean_a, mean_b), (a, b) = mean.chunk(2), (stage - mean).chunk(2)
            texture = (2 * mean_a * mean_b + EPSILON) / (mean_a**2 + mean_b**2 + EPSILON)
            both, power = (each.mean((2, 3), keepdim=True) for each in (2 * a * b, a**2 + b**2))
            alike += float((alpha * texture + beta * (both + EPSILON) / (power + EPSILON)).sum())
        return 1 - alike

    def _stages(self, images: Tensor, *, is_lpips: bool) -> list[Tensor]:
        """Return what each block makes of images; DISTS pools by norms instead of maxima."""
        found = []
        for layer in self._vgg:
            if isinstance(layer, nn.MaxPool2d):
                found.append(images)
                images = layer(images) if is_lpips else _pooled(images)
            else:
                images = layer(images)
        return found


def vgg16(path: Path) -> nn.Sequential:
    """Return the features of torchvision's VGG16, with the weights of a file."""
    layers, before = list[nn.Module](), 3
    for block in BLOCKS:
        for width in block:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(*layers)
    fill(network, path, "VGG16", PREFIX)
    return network.eval()


def _bundled(name: str) -> dict[str, Tensor]:
    """Read a file of weights that comes with torchmetrics."""
    with as_file(files("torchmetrics.functional.image") / name) as path:
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def _standardized(images: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


def _pooled(images: Tensor) -> Tensor:
    """Return the root of squares averaged over 3x3 by a Hann window, every second pixel."""
    hann = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(hann, hann).expand(images.shape[1], 1, 3, 3)
    averaged = F.conv2d(images**2, kernel, stride=2, padding=1, groups=images.shape[1])
    return (averaged + 1e-12).sqrt()
