"""The one-step student: photo and focal position in, focal stack out, in one convolutional pass.

Design: the nine frames are channels of one pass, not a batch of nine, so that temporal mixing is
an ordinary convolution. Only layers that XNNPACK and Core ML take whole are used: Conv2d,
ConvTranspose2d, Linear, ReLU-family activations and additions; no normalisation, no attention.
One-step regression at a fixed timestep with zero noise follows E2E-FT (arXiv 2409.11355).

Legend: B batch (1 on a phone), T = 9 frames, C channels, H, W.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from pocketfocus.errors import UserError
from pocketfocus.optics import FRAMES


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


class RefocusStudent(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A U-Net without normalisation that adds nine learned corrections to the photo.

    `forward(photo [B,3,H,W] in [-1,1], position one-hot [B,9]) -> [B*9,3,H,W] in [-1,1]`; H and W
    are multiples of `2 ** len(channels)`. The photo itself is added to every frame (design §7), so
    the untrained network already equals the `copy` baseline.

    Args:
        channels: width of each level; level i works at 1/2**(i+1) of the photo's size.
        blocks: number of residual blocks at each level (encoder and decoder each).
        expansion: width factor of the pointwise MLPs.
        size: the square photo size (pixels) the exported files take.
    """

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 192),
        blocks: Sequence[int] = (1, 1, 2, 2),
        expansion: int = 2,
        size: int = 256,
    ) -> None:
        super().__init__()
        levels = len(channels)
        widths = (3, *channels)
        self.down = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1) for i in range(levels)
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
        self.head = nn.ConvTranspose2d(channels[0], 3 * FRAMES, 4, stride=2, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, photo: Tensor, position: Tensor) -> Tensor:
        x, skips = photo, []
        for down, embed, blocks in zip(self.down, self.position, self.encoder, strict=True):
            x = down(x) + embed(position)[:, :, None, None]
            x = blocks(x)
            skips.append(x)
        for up, blocks, skip in zip(
            reversed(self.up), reversed(self.decoder), reversed(skips[:-1]), strict=True
        ):
            x = blocks(up(x) + skip)
        return self.compose(photo, self.head(x))

    @staticmethod
    def compose(photo: Tensor, change: Tensor) -> Tensor:
        """Add the photo to every frame: [B,3,H,W] + [B,27,H,W] -> [B*9,3,H,W] in [-1,1]."""
        batch, _, height, width = photo.shape
        frames = change.reshape(batch * FRAMES, 3, height, width)
        if batch > 1:
            photo = photo.repeat_interleave(FRAMES, dim=0)
        return (photo + frames).clamp(-1.0, 1.0)


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
