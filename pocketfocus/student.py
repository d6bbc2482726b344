"""The one-step student: photo and focal position in, focal stack out, in one convolutional pass.

A U-Net at a quarter of the photo's size says how much of each of a few discs of defocus every frame
takes at every place (kernel prediction, Bako et al., arXiv 1712.02327), and optics does the rest at
full size: no decoder has to carry the photo's detail, and a frame with all weights zero is the
photo itself.

Design: the nine frames are channels of one pass, not a batch of nine, so that temporal mixing is
an ordinary convolution. Only layers that XNNPACK and Core ML take whole are used: convolutions,
linear layers, ReLU-family activations, elementwise arithmetic and bilinear interpolation; no
normalisation, no attention. One-step regression at a fixed timestep with zero noise follows E2E-FT
(arXiv 2409.11355).

Legend: B batch (1 on a phone), T = 9 frames, K discs, C channels, H, W, h = H / 4, w = W / 4.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from pocketfocus.errors import UserError
from pocketfocus.files import write_atomic
from pocketfocus.optics import FRAMES, disc_kernel

SCALE = 4  # of the photo to the weights
DARKEST = 1e-4  # added to light, whose square root then has a slope everywhere


class ConvBlock(nn.Module):
    """Residual 3x3 convolution, then a pointwise MLP on channels-last features.

    [B, C, H, W] -> [B, C, H, W]. The MLP is two `Linear`s, so that 4-bit weights exist for it on
    XNNPACK, where convolutions stop at 8 bits.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.up = nn.Linear(channels, channels * expansion)
        self.down = nn.Linear(channels * expansion, channels)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.act(self.conv(x))
        y = self.down(self.act(self.up(x.permute(0, 2, 3, 1))))
        return x + y.permute(0, 3, 1, 2)


class WeightNet(nn.Module):
    """A U-Net without normalisation: weights of discs of defocus at a quarter of the photo's size.

    `forward(photo [B,3,H,W] in [-1,1], position one-hot [B,9]) -> [B,K*9,h,w]`, disc by disc; H and
    W are multiples of `2 ** (levels + 1)`. Untrained, all weights are zero.
    """

    def __init__(
        self, channels: Sequence[int], blocks: Sequence[int], expansion: int, discs: int
    ) -> None:
        super().__init__()
        first, levels = channels[0], len(channels)
        self.stem = nn.Conv2d(3, first // 2, 4, stride=2, padding=1)
        self.act = nn.Hardswish()
        self.down = nn.ModuleList(
            nn.Conv2d(channels[i - 1] if i else first // 2, channels[i], 4, stride=2, padding=1)
            for i in range(levels)
        )
        self.encoder = nn.ModuleList(
            nn.Sequential(*(ConvBlock(c, expansion) for _ in range(n)))
            for c, n in zip(channels, blocks, strict=True)
        )
        self.position = nn.ModuleList(nn.Linear(FRAMES, c, bias=False) for c in channels)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(channels[i + 1], channels[i], 4, stride=2, padding=1)
            for i in range(levels - 1)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(*(ConvBlock(c, expansion) for _ in range(n)))
            for c, n in zip(channels[:-1], blocks[:-1], strict=True)
        )
        self.head = nn.Conv2d(first, discs * FRAMES, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, photo: Tensor, position: Tensor) -> Tensor:
        x, skips = self.act(self.stem(photo)), []
        for down, embed, blocks in zip(self.down, self.position, self.encoder, strict=True):
            x = down(x) + embed(position)[:, :, None, None]
            x = blocks(x)
            skips.append(x)
        for up, blocks, skip in zip(
            reversed(self.up), reversed(self.decoder), reversed(skips[:-1]), strict=True
        ):
            x = blocks(up(x) + skip)
        weights: Tensor = self.head(x)
        return weights


class Defocus(nn.Module):
    """What discs of confusion of fixed `radii` (pixels) change in a photo.

    `forward(photo [B,3,H,W] in [-1,1]) -> K changes [B,3,H,W]`. Light is taken as the square of
    sRGB, which is close to its curve and one multiplication; edges are repeated. Whole numbers are
    written as floats: ExecuTorch converts integers at run time, outside the delegate.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, radii: Sequence[float]) -> None:
        super().__init__()
        kernels = [disc_kernel(radius) for radius in radii]
        self.reach = max(kernel.shape[-1] for kernel in kernels) // 2
        for n, kernel in enumerate(kernels):
            self.register_buffer(f"kernel{n}", kernel.repeat(3, 1, 1, 1), persistent=False)
        self.register_buffer("rows", torch.ones(1, 1, self.reach, 1), persistent=False)
        self.register_buffer("columns", torch.ones(1, 1, 1, self.reach), persistent=False)
        self.discs = len(kernels)

    def forward(self, photo: Tensor) -> list[Tensor]:
        brightness = (photo + 1.0) / 2.0
        light = self.extended(brightness * brightness + DARKEST)
        changes = []
        for n in range(self.discs):
            kernel = self.get_buffer(f"kernel{n}")
            spare = self.reach - kernel.shape[-1] // 2
            inner = light
            if spare:  # a slice that takes everything is an alias, which Core ML refuses
                inner = light[:, :, spare:-spare, spare:-spare]
            blurred = F.conv2d(inner, kernel, groups=3)
            changes.append(2.0 * blurred.sqrt() - 1.0 - photo)
        return changes

    def extended(self, image: Tensor) -> Tensor:
        """Edges repeated `reach` times on each side, with operators that every delegate takes."""
        top, bottom = image[:, :, :1] * self.rows, image[:, :, -1:] * self.rows
        image = torch.cat([top, image, bottom], 2)
        left, right = image[:, :, :, :1] * self.columns, image[:, :, :, -1:] * self.columns
        return torch.cat([left, image, right], 3)


class RefocusStudent(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Photo and position to focal stack: `network` weighs the discs of `defocus`.

    `forward(photo [B,3,H,W] in [-1,1], position one-hot [B,9]) -> [B*9,3,H,W] in [-1,1]`; H and W
    are multiples of `2 ** (len(channels) + 1)`. The frame at `position` is the photo, exactly; the
    untrained network gives the photo in all nine, as the `copy` baseline.

    Args:
        channels: width of each level; level i works at 1/2**(i+2) of the photo's size.
        blocks: number of residual blocks at each level (encoder and decoder each).
        expansion: width factor of the pointwise MLPs.
        radii: of the discs of defocus, in pixels.
        size: (height, width) of the photo that the exported files take, pixels.
    """

    frames: Tensor

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 192, 256),
        blocks: Sequence[int] = (1, 3, 2, 2),
        expansion: int = 2,
        radii: Sequence[float] = (0.5, 1.0, 1.8, 3.0, 4.5),
        size: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        self.network = WeightNet(channels, blocks, expansion, len(radii))
        self.defocus = Defocus(radii)
        frames = torch.eye(FRAMES).repeat(len(radii), 1)
        self.register_buffer("frames", frames, persistent=False)

    @property
    def photo_size(self) -> tuple[int, int]:
        """(H, W) of the photo that its files take, pixels."""
        height, width = self.config["size"]
        return int(height), int(width)

    def forward(self, photo: Tensor, position: Tensor) -> Tensor:
        changes = self.defocus(photo)
        others = 1.0 - F.linear(position, self.frames)  # of every disc
        weights = self.network(photo, position) * others[:, :, None, None]
        return self.compose(photo, weights, changes)

    @staticmethod
    def compose(photo: Tensor, weights: Tensor, changes: Sequence[Tensor]) -> Tensor:
        """The photo and so much of every change: [B,3,H,W], [B,K*9,h,w] and K of [B,3,H,W] to
        [B*9,3,H,W] in [-1,1]. All tensors have four dimensions."""
        batch, _, height, width = photo.shape
        full = F.interpolate(weights, scale_factor=SCALE, mode="bilinear", align_corners=False)
        # Pixels in one last dimension: XNNPACK multiplies runs of it, not three colours at a time.
        shares = full.flatten(2)
        images = [image.flatten(2) for image in (photo, *changes)]
        if batch > 1:
            images = [image.repeat_interleave(FRAMES, dim=0) for image in images]
        stack, *changes = images
        for n, change in enumerate(changes):
            share = shares[:, n * FRAMES : (n + 1) * FRAMES]
            stack = stack + share.reshape(batch * FRAMES, 1, height * width) * change
        return stack.clamp(-1.0, 1.0).reshape(batch * FRAMES, 3, height, width)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},  # shipped, for the default reference
    "phone": {  # for Learn2Refocus
        "channels": (128, 256, 384, 512),
        "blocks": (1, 3, 3, 3),
        "radii": (1.25, 2.5, 4.5, 7.5, 11.25),
        "size": (448, 640),
    },
}
"""Sizes of students by name: arguments of `RefocusStudent` that differ from its own."""


def build_student(preset: str = "tiny") -> RefocusStudent:
    """An untrained student; UserError names the presets."""
    if preset not in PRESETS:
        raise UserError(f"no student preset '{preset}': choose from {', '.join(PRESETS)}")
    return RefocusStudent(**PRESETS[preset])


SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "student"


def load_student(folder: Path | None = None) -> RefocusStudent:
    """Load a student folder (config.json + safetensors) in fp32; None is the shipped one.

    Raises UserError for a missing or foreign config, pickled or unfitting weights.
    """
    folder = Path(folder) if folder is not None else SHIPPED_WEIGHTS
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder} has no config.json: a student folder is what `distill` writes")
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{config} cannot be read ({error}): distil the student anew") from error
    if found != RefocusStudent.__name__:
        raise UserError(f"{folder} holds a {found}, a student is a {RefocusStudent.__name__}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no .safetensors: pickled checkpoints are refused")
    try:
        student: RefocusStudent = RefocusStudent.from_pretrained(
            folder, use_safetensors=True, torch_dtype=torch.float32, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise UserError(f"the weights in {folder} do not fit its config.json ({reason})") from error
    student.register_to_config(_name_or_path="")  # or saving it again would tell where it lay
    return student.eval()


def save_student(student: RefocusStudent, folder: Path) -> None:
    """Write config.json and weights, fp16 safetensors, atomically."""
    with write_atomic(folder) as scratch:
        copy.deepcopy(student).half().save_pretrained(scratch, safe_serialization=True)
