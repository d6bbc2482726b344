"""What a student knows of pictures in general before it learns to refocus: a prior of depth.

Whether something blurred lies in front of the focal plane or behind it cannot be seen from its
blur, but from what it is. The first blocks of EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946;
Lite: without squeeze-and-excitation, ReLU6), learned from ImageNet, recognise what is there; the
student's encoder tells how blurred it is. From both a few layers say where things lie.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

STEM = 32
STEM_STRIDE = 4  # Lite0's own is 2; it sees the photo at half of its size
BLOCKS = (  # kernel size, stride, expansion, channels
    (3, 1, 1, 16),
    (3, 2, 6, 24),
    (3, 1, 6, 24),
    (5, 2, 6, 40),
    (5, 1, 6, 40),
    (3, 2, 6, 80),
    (3, 1, 6, 80),
)
MULTIPLE = 32  # of the sides of a photo
READ = (2, 4, 6)  # blocks whose output is read: 24 at 1/8, 40 at 1/16, 80 at 1/32 of the size


class InvertedResidual(nn.Module):
    """An inverted residual block of MobileNetV2 (arXiv 1801.04381) without normalisation, which is
    part of its kernels: [B,C,H,W] -> [B,D,H/stride,W/stride]."""

    def __init__(self, channels: int, shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        size, stride, expansion, out = shape
        wide = channels * expansion
        self.expand = nn.Conv2d(channels, wide, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(wide, wide, size, stride, size // 2, groups=wide)
        self.project = nn.Conv2d(wide, out, 1)
        self.residual = stride == 1 and out == channels

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x))
        change: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + change if self.residual else change


class Prior(nn.Module):
    """Where things lie, by what they are and how blurred they are.

    `forward(photo [B,3,h,w] in [-1,1], encoded [B,C,h/16,w/16]) -> [B,D,h/16,w/16]`; h and w are
    multiples of `MULTIPLE`.
    """

    def __init__(self, encoded: int, width: int) -> None:
        super().__init__()
        # half of the size by means of 2x2 pixels, and Lite0's 3x3 stride 2 after that, are one
        self.stem = nn.Conv2d(3, STEM, 6, stride=STEM_STRIDE, padding=2)
        channels = (STEM, *(out for *_, out in BLOCKS))
        self.blocks = nn.ModuleList(map(InvertedResidual, channels, BLOCKS))
        fine, middle, coarse = (channels[1 + block] for block in READ)
        self.fine = nn.Conv2d(fine, width, 2, stride=2)
        self.middle = nn.Conv2d(middle, width, 1)
        self.coarse = nn.Conv2d(coarse, width, 1)
        self.encoded = nn.Conv2d(encoded, width, 1)
        self.mix = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, photo: Tensor, encoded: Tensor) -> Tensor:
        x, found = F.relu6(self.stem(photo)), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        fine, middle, coarse = (found[block] for block in READ)
        far = F.interpolate(
            self.coarse(coarse), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        x = F.relu(self.fine(fine) + self.middle(middle) + far + self.encoded(encoded))
        return x + F.relu(self.mix(x))
