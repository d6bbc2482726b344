"""The Inception network of FID: what it sees of an image, where its weights are on disk.

It is the one of 2015 (Szegedy et al., arXiv 1512.00567) that FID is defined by (Heusel et al.,
arXiv 1706.08500), which differs from torchvision's in how it pools. Layers have the names of its
published file.

Legend: B images, C channels, D = 2048 features, H, W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfocus.benchmarks.metric_weights import fill
from pocketfocus.photos.images import to_uint8

SIDE = 299  # pixels of an image, whatever its own shape
MIDDLE = 128  # of 8 bits, where the network has its zero
EPSILON = 1e-3  # of batch norms
AT_ONCE = 8  # images

AVERAGE, MAXIMUM, HALF = "mean of 3x3", "maximum of 3x3", "maximum of 3x3, every second"


@dataclass(frozen=True)
class Layer:
    """A convolution with a batch norm and a ReLU; those of stride 2 have no padding."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Step = Layer | tuple[Layer, ...] | str
"""A layer, layers side by side, or a pooling."""
Branch = Sequence[Step]


def chain(name: str, *sizes: tuple[int, tuple[int, int]], stride: int = 1) -> list[Step]:
    """Layers one after another, numbered from 1, by outputs and kernel; `stride` is the last's."""
    last = len(sizes)
    return [
        Layer(f"{name}_{n}", outputs, kernel, stride if n == last else 1)
        for n, (outputs, kernel) in enumerate(sizes, 1)
    ]


def small(pooled: int) -> list[Branch]:
    """The branches of a block of 35x35 pixels."""
    return [
        [Layer("branch1x1", 64)],
        chain("branch5x5", (48, (1, 1)), (64, (5, 5))),
        chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
        [AVERAGE, Layer("branch_pool", pooled)],
    ]


def wide(inner: int) -> list[Branch]:
    """The branches of a block of 17x17 pixels, whose kernels are rows and columns of 7."""
    row, column = (1, 7), (7, 1)
    twice = [(inner, column), (inner, row), (inner, column), (192, row)]
    return [
        [Layer("branch1x1", 192)],
        chain("branch7x7", (inner, (1, 1)), (inner, row), (192, column)),
        chain("branch7x7dbl", (inner, (1, 1)), *twice),
        [AVERAGE, Layer("branch_pool", 192)],
    ]


def last(pooling: str) -> list[Branch]:
    """The branches of a block of 8x8 pixels, two of which end in a row and a column of 3."""

    def ends(name: str) -> tuple[Layer, ...]:
        return Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))

    return [
        [Layer("branch1x1", 320)],
        [Layer("branch3x3_1", 384), ends("branch3x3_2")],
        [*chain("branch3x3dbl", (448, (1, 1)), (384, (3, 3))), ends("branch3x3dbl_3")],
        [pooling, Layer("branch_pool", 192)],
    ]


BLOCKS: Mapping[str, Sequence[Branch]] = {
    "Mixed_5b": small(32),
    "Mixed_5c": small(64),
    "Mixed_5d": small(64),
    "Mixed_6a": [
        [Layer("branch3x3", 384, (3, 3), 2)],
        chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)), stride=2),
        [HALF],
    ],
    "Mixed_6b": wide(128),
    "Mixed_6c": wide(160),
    "Mixed_6d": wide(160),
    "Mixed_6e": wide(192),
    "Mixed_7a": [
        chain("branch3x3", (192, (1, 1)), (320, (3, 3)), stride=2),
        chain("branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)), stride=2),
        [HALF],
    ],
    "Mixed_7b": last(AVERAGE),
    "Mixed_7c": last(MAXIMUM),
}


class Unit(nn.Module):
    """A layer: [B,C,H,W] -> [B,outputs,H',W'], padded to keep H and W where its stride is 1."""

    def __init__(self, inputs: int, layer: Layer, padded: bool = True) -> None:
        super().__init__()
        keeps = padded and layer.stride == 1
        padding = [side // 2 if keeps else 0 for side in layer.kernel]
        self.conv = nn.Conv2d(
            inputs, layer.outputs, layer.kernel, layer.stride, (padding[0], padding[1]), bias=False
        )
        self.bn = nn.BatchNorm2d(layer.outputs, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side, whose channels follow one another: [B,C,H,W] -> [B,outputs,H',W']."""

    def __init__(self, inputs: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.branches, self.outputs = branches, 0
        for branch in branches:
            channels = inputs
            for step in branch:
                layers = side_by_side(step)
                for layer in layers:
                    self.add_module(layer.name, Unit(channels, layer))
                channels = sum(layer.outputs for layer in layers) or channels
            self.outputs += channels

    def forward(self, x: Tensor) -> Tensor:
        made = []
        for branch in self.branches:
            values = x
            for step in branch:
                units = [self.get_submodule(layer.name) for layer in side_by_side(step)]
                pooled = pool(values, step) if isinstance(step, str) else values
                values = torch.cat([unit(pooled) for unit in units], 1) if units else pooled
            made.append(values)
        return torch.cat(made, 1)


def side_by_side(step: Step) -> tuple[Layer, ...]:
    """The layers of a step, none for a pooling."""
    if isinstance(step, str):
        return ()
    return (step,) if isinstance(step, Layer) else step


def pool(x: Tensor, pooling: str) -> Tensor:
    """Pool 3x3 pixels, of which those beyond the borders do not count."""
    if pooling == AVERAGE:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return F.max_pool2d(x, 3, 1, 1) if pooling == MAXIMUM else F.max_pool2d(x, 3, 2)


class Inception(nn.Module):
    """Images [B,3,299,299], zero at half of full brightness, to their features [B,D]."""

    def __init__(self) -> None:
        super().__init__()
        three = (3, 3)
        self.Conv2d_1a_3x3 = Unit(3, Layer("", 32, three, 2))
        self.Conv2d_2a_3x3 = Unit(32, Layer("", 32, three), padded=False)
        self.Conv2d_2b_3x3 = Unit(32, Layer("", 64, three))
        self.Conv2d_3b_1x1 = Unit(64, Layer("", 80))
        self.Conv2d_4a_3x3 = Unit(80, Layer("", 192, three), padded=False)
        channels = 192
        for name, branches in BLOCKS.items():
            block = Block(channels, branches)
            self.add_module(name, block)
            channels = block.outputs

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(pool(x, HALF)))
        x = pool(x, HALF)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def load_inception(path: Path) -> Inception:
    """Return the network with the weights of a file; UserError where they are another's."""
    with torch.device("meta"):
        network = Inception()
    network = network.to_empty(device="cpu")
    fill(network, path, "FID's Inception")
    return network.eval()


@torch.inference_mode()
def features(network: nn.Module, images: Tensor) -> Tensor:
    """Return features [B,D] of images [B,3,H,W] in [-1, 1], rounded to 8 bits and scaled to 299x299
    with antialiasing, as torchmetrics does."""
    found = []
    for part in torch.split(images, AT_ONCE):
        pixels = torch.from_numpy(to_uint8(part, planar=True)).float()
        scaled = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
        found.append(network((scaled - MIDDLE) / MIDDLE))
    return torch.cat(found)
