"""The one-step student: photo and focal position in, focal stack out, in one convolutional pass.

A U-Net at a quarter of the photo's size says by how much every frame strengthens or weakens each
band of the photo at every place (after the Laplacian pyramid of Burt and Adelson, 1983), and which
colours it adds. Defocus weakens bands, finest first; the full size sees little but two
multiplications. No decoder has to carry the photo's detail, and a frame with nothing to change is
the photo itself.

Design: the nine frames are channels of one pass, not a batch of nine, so that temporal mixing is
an ordinary convolution. Only layers that XNNPACK and Core ML take whole are used: convolutions,
linear layers, ReLU-family activations, elementwise arithmetic and bilinear interpolation; no
normalisation, and no attention unless asked for (`research.search` measures it). One-step
regression at a fixed timestep with zero noise follows E2E-FT (arXiv 2409.11355).

Legend: B batch (1 on a phone), T = 9 frames, K bands, C channels, H, W, h = H / 4, w = W / 4.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic

ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish, "silu": nn.SiLU}
COLOURS = 3
COARSE = 2  # the first band as coarse as the U-Net's output, a quarter of the photo's size


def enlarged(x: Tensor, factor: float = 2.0) -> Tensor:
    """Enlarge [B,C,H,W] bilinearly to [B,C,factor*H,factor*W]."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class BlockKind:
    """What all blocks of a network have in common.

    `depthwise`: the convolution is 5x5, a channel at a time, and one residual spans both halves
    (ConvNeXt, arXiv 2201.03545, without its norm); else it is 3x3, with a residual of its own.
    """

    expansion: int
    activation: str = "relu"
    depthwise: bool = False


class ConvBlock(nn.Module):
    """Residual convolution, then a residual pointwise MLP: [B, C, H, W] -> [B, C, H, W].

    `groups` of channels see nothing of each other.
    """

    def __init__(self, channels: int, kind: BlockKind, groups: int = 1) -> None:
        super().__init__()
        self.depthwise, wide = kind.depthwise, channels * kind.expansion
        size, apart = (5, channels) if kind.depthwise else (3, groups)
        self.conv = nn.Conv2d(channels, channels, size, padding=size // 2, groups=apart)
        self.up = nn.Conv2d(channels, wide, 1, groups=groups)
        self.down = nn.Conv2d(wide, channels, 1, groups=groups)
        self.act = ACTIVATIONS[kind.activation]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if not self.depthwise:
            y = x = x + self.act(y)
        change: Tensor = self.down(self.act(self.up(y)))
        return x + change


class Attention(nn.Module):
    """Residual self-attention of one head over all places; at first it changes nothing.

    [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.out = nn.Conv2d(channels, channels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x).flatten(2).transpose(1, 2) @ self.key(x).flatten(2)
        shares = (scores * x.shape[1] ** -0.5).softmax(-1)
        mixed = self.value(x).flatten(2) @ shares.transpose(1, 2)
        change: Tensor = self.out(mixed.reshape(x.shape))
        return x + change


class WeightNet(nn.Module):
    """A U-Net without normalisation, from a quarter of the photo's size down.

    `forward(photo [B,3,H,W] in [-1,1], position one-hot [B,9]) -> [B,outputs,h,w]`; H and W are
    multiples of `2 ** (levels + 1)`. Untrained, all outputs are zero. `attention` comes last at the
    coarsest level; with `frames_apart` the last blocks mix no frames, and the first width is a
    multiple of 9.
    """

    def __init__(
        self,
        channels: Sequence[int],
        blocks: Sequence[int],
        outputs: int,
        kind: BlockKind,
        attention: bool = False,
        frames_apart: bool = False,
    ) -> None:
        super().__init__()
        first = channels[0]

        def stage(width: int, count: int, groups: int = 1) -> nn.Sequential:
            return nn.Sequential(*(ConvBlock(width, kind, groups) for _ in range(count)))

        self.stem = nn.Conv2d(COLOURS, first // 2, 4, stride=2, padding=1)
        self.act = ACTIVATIONS[kind.activation]()
        self.enter = nn.Conv2d(first // 2, first, 4, stride=2, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(c, d, 2, stride=2) for c, d in pairwise(channels))
        encoder = [stage(c, n) for c, n in zip(channels, blocks, strict=True)]
        if attention:
            encoder[-1].append(Attention(channels[-1]))
        self.encoder = nn.ModuleList(encoder)
        self.position = nn.ModuleList(nn.Linear(FRAMES, c, bias=False) for c in channels)
        self.up = nn.ModuleList(nn.Conv2d(d, c, 1) for c, d in pairwise(channels))
        self.decoder = nn.ModuleList(
            stage(channels[i], blocks[i], FRAMES if frames_apart and not i else 1)
            for i in range(len(channels) - 1)
        )
        self.head = nn.Conv2d(first, outputs, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, photo: Tensor, position: Tensor) -> Tensor:
        x, skips = self.act(self.stem(photo)), []
        for down, embed, blocks in zip(
            (self.enter, *self.down), self.position, self.encoder, strict=True
        ):
            x = down(x) + embed(position)[:, :, None, None]
            x = blocks(x)
            skips.append(x)
        for up, blocks, skip in zip(
            reversed(self.up), reversed(self.decoder), reversed(skips[:-1]), strict=True
        ):
            x = blocks(enlarged(up(x)) + skip)  # the narrower side is enlarged
        outputs: Tensor = self.head(x)
        return outputs


class Bands(nn.Module):
    """What a binomial blur of 3x3 pixels takes away from the photo, at every size.

    `forward(photo [B,3,H,W]) -> K bands [B,3,H/2**k,W/2**k]`, finest first; smaller sizes are means
    of 2x2 pixels, H and W multiples of 2**K. In a Laplacian pyramid, which takes away what the
    next smaller size shows, decimation's own errors are in every band. Here none is decimated
    within (as in the "algorithme a trous" of Holschneider et al., 1989), so small blurs are exact.
    """

    mean: Tensor
    binomial: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.bands = bands
        # a convolution: XNNPACK does not take `avg_pool2d`
        self.register_buffer("mean", torch.full((COLOURS, 1, 2, 2), 0.25), persistent=False)
        row = torch.tensor([0.25, 0.5, 0.25])
        kernel = (row[:, None] * row).repeat(COLOURS, 1, 1, 1)
        self.register_buffer("binomial", kernel, persistent=False)

    def forward(self, photo: Tensor) -> list[Tensor]:
        bands = []
        for level in range(self.bands):
            if level:
                photo = F.conv2d(photo, self.mean, stride=2, groups=COLOURS)
            bands.append(photo - F.conv2d(edged(photo), self.binomial, groups=COLOURS))
        return bands


def edged(x: Tensor) -> Tensor:
    """Repeat the edges of [B,C,H,W] to [B,C,H+2,W+2]; XNNPACK has no such padding."""
    x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
    return torch.cat([x[..., :1], x, x[..., -1:]], dim=3)


class RefocusStudent(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Photo and position to focal stack: `network` says what changes in each of the photo's bands.

    `forward(photo [B,3,H,W] in [-1,1], position one-hot [B,9]) -> [B*9,3,H,W] in [-1,1]`; H and W
    are multiples of `2 ** max(len(channels) + 1, bands)`. The frame at `position` is the photo,
    exactly; the untrained network gives the photo in all nine, as the `copy` baseline.

    Args:
        channels: width of each level; level i works at 1/2**(i+2) of the photo's size.
        blocks: number of residual blocks at each level (encoder and decoder each).
        expansion: width factor of the pointwise MLPs.
        activation: one of `ACTIVATIONS`.
        depthwise: whether the blocks' convolutions are; see `BlockKind`.
        attention, frames_apart: see `WeightNet`.
        bands: how many, three at least; see `Bands`.
        size: (height, width) of the photo that the exported files take, pixels.
    """

    frames: Tensor

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 192, 256),
        blocks: Sequence[int] = (1, 3, 2, 2),
        expansion: int = 2,
        activation: str = "hardswish",
        depthwise: bool = True,
        attention: bool = False,
        frames_apart: bool = False,
        bands: int = 4,
        size: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        outputs = FRAMES * (bands + COLOURS)
        kind = BlockKind(expansion, activation, depthwise)
        self.network = WeightNet(channels, blocks, outputs, kind, attention, frames_apart)
        self.pyramid = Bands(bands)
        eye = torch.eye(FRAMES)
        frames = torch.cat([eye.repeat(bands, 1), eye.repeat_interleave(COLOURS, dim=0)])
        self.register_buffer("frames", frames, persistent=False)  # whose an output is

    @property
    def photo_size(self) -> tuple[int, int]:
        """(H, W) of the photo that its files take, pixels."""
        height, width = self.config["size"]
        return int(height), int(width)

    def forward(self, photo: Tensor, position: Tensor) -> Tensor:
        others = 1.0 - F.linear(position, self.frames)
        outputs = self.network(photo, position) * others[:, :, None, None]
        return self.compose(photo, outputs, self.pyramid(photo))

    @staticmethod
    def compose(photo: Tensor, outputs: Tensor, bands: Sequence[Tensor]) -> Tensor:
        """Compose the photo, every band times its gains, and the added colours to the stack in
        [-1,1].

        photo [B,3,H,W]; outputs [B,K*9+27,h,w], nine gains a band, then nine frames' colours;
        K bands, finest first; result [B*9,3,H,W]. No tensor has more than four dimensions. Whole
        numbers are written as floats: ExecuTorch converts integers at run time, outside the
        delegate.
        """
        height, width = photo.shape[-2:]
        gains = [outputs[:, n * FRAMES : (n + 1) * FRAMES] for n in range(len(bands))]
        change = outputs[:, len(bands) * FRAMES :]
        for level in reversed(range(len(bands))):
            gain, band = gains[level], bands[level]
            if level < COARSE:  # finer than the outputs: all that is coarser is enlarged once
                change = enlarged(change)
                gain = enlarged(gain, 2.0 ** (COARSE - level))
            elif level > COARSE:
                band = enlarged(band, 2.0 ** (level - COARSE))
            change = change + weighted(gain, band)
        photos = repeated(photo.flatten(2), len(photo)).reshape(-1, COLOURS, height * width)
        stack = photos + change.reshape(-1, COLOURS, height * width)
        return stack.clamp(-1.0, 1.0).reshape(-1, COLOURS, height, width)


def weighted(gain: Tensor, band: Tensor) -> Tensor:
    """Multiply gains [B,9,H,W] with a band [B,3,H,W] frame by frame: [B,27,H,W].

    Pixels are in one last dimension: XNNPACK multiplies runs of it, not three colours at a time.
    """
    batch, _, height, width = gain.shape
    product = gain.reshape(-1, 1, height * width) * repeated(band.flatten(2), batch)
    return product.reshape(batch, FRAMES * COLOURS, height, width)


def repeated(images: Tensor, batch: int) -> Tensor:
    """Repeat [B,3,N] as [B*9,3,N], or leave it as it is for one photo, which broadcasts."""
    return images.repeat_interleave(FRAMES, dim=0) if batch > 1 else images


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},  # shipped, for the default reference
    "phone": {  # for Learn2Refocus
        "channels": (128, 256, 384, 512),
        "blocks": (1, 3, 3, 3),
        "bands": 5,
        "size": (448, 640),
    },
}
"""Sizes of students by name: arguments of `RefocusStudent` that differ from its own."""


def build_student(preset: str = "tiny") -> RefocusStudent:
    """Return an untrained student; UserError names the presets."""
    if preset not in PRESETS:
        raise UserError(f"no student preset '{preset}': choose from {', '.join(PRESETS)}")
    return RefocusStudent(**PRESETS[preset])


SHIPPED_WEIGHTS = Path(__file__).parent.parent / "weights" / "student"


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
        made = copy.deepcopy(student).half().to(memory_format=torch.contiguous_format)
        made.save_pretrained(scratch, safe_serialization=True)
