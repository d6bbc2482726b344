"""The student of two halves: `Analyser` says what refocusing changes, frames are made of that.

Defocus weakens the bands of a picture by gains that vary slowly in space, so the analyser, a U-Net
without normalisation, says at a quarter of its photo's size how much of each band every frame
keeps. What blur has removed has to be restored: for that it adds pixels. Bands finer than the size
of analysis follow a gain of their own, so a frame of twice or ten times that size is no
enlargement. Only dense convolutions, ReLU and bilinear enlargement are used: what XNNPACK and
Core ML take whole.

The code of a photo is [B, IMAGES * (1 + K + 48), h/4, w/4]: for each of the nine frames, and for
the picture that is sharp everywhere, the gain of detail finer than the analysis, K gains of bands,
and 4x4 pixels of three colours to add.

Legend: B batch, K bands, C channels, h, w size of the analysis, H, W size of the photo.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pocketfocus.run.constants import FRAMES, IMAGES
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic

COLOURS = 3
CELL = 4  # pixels of the analysis, a side, that one place of the code speaks of
PIXELS = COLOURS * CELL**2
SECOND_CONVOLUTION = 0.3  # of a block, at first, against the usual start: no norm keeps scale
CONFIG, WEIGHTS = "config.json", "model.safetensors"

Width = Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
Count = Annotated[int, Field(ge=0, le=16)]


class AnalyserConfig(BaseModel):
    """Sizes of an analyser.

    Attributes:
        channels: width of each level; level i works at 1 / 2**(i + 2) of the photo's size.
        encoder: number of residual blocks of each level on the way down.
        decoder: likewise on the way up; one level fewer.
        head: width of the layer before the code.
        bands: how many gains each frame has within the size of the analysis.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: tuple[Width, ...] = (64, 128, 192)
    encoder: tuple[Count, ...] = (2, 3, 4)
    decoder: tuple[Count, ...] = (2, 3)
    head: Width = 128
    bands: Annotated[int, Field(ge=1, le=6)] = 4

    @model_validator(mode="after")
    def _levels_agree(self) -> AnalyserConfig:
        levels = len(self.channels)
        if len(self.encoder) != levels or len(self.decoder) != levels - 1:
            raise ValueError(
                f"{levels} levels need as many numbers in encoder and one fewer in decoder, "
                f"these are {len(self.encoder)} and {len(self.decoder)}"
            )
        return self

    @property
    def multiple(self) -> int:
        """Both sides of the photo that is analysed are multiples of this many pixels."""
        return int(CELL * max(2 ** (len(self.channels) - 1), 2 ** max(0, self.bands - 3)))

    @property
    def values(self) -> int:
        """Channels of the code for each image."""
        return 1 + self.bands + PIXELS


PRESETS = {
    "tiny": AnalyserConfig(),
    "phone": AnalyserConfig(channels=(64, 128, 192, 256), encoder=(2, 2, 3, 4), decoder=(2, 2, 3)),
    "micro": AnalyserConfig(channels=(8, 16), encoder=(1, 1), decoder=(1,), head=16, bands=3),
}
"""Sizes by name: `tiny` is shipped, `phone` sees more at once, `micro` is for tests."""


class Block(nn.Module):
    """A residual block of two 3x3 convolutions: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(SECOND_CONVOLUTION)
            self.second.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(F.relu(self.first(x)))
        return x + change


class Analysis(NamedTuple):
    """What an analyser says of photos.

    code [B, IMAGES * config.values, h/4, w/4] (see `change_of`); dioptres [B, 1, h/4, w/4], the
    distance of each place in units of 20 dioptres (near 1, infinity 0): it teaches the network
    where things lie, and tells apps; position [B, 9], logits of the focal positions that the photo
    may have been taken at, of meaning where the analyser was not told.
    """

    code: Tensor
    dioptres: Tensor
    position: Tensor


class Analyser(nn.Module):
    """`forward(photo [B,3,h,w] in [-1,1], position one-hot [B,9])` gives the `Analysis`.

    A position of zeros stands for an unknown one. h and w are multiples of `config.multiple`.
    Untrained, the code is zero, which renders the photo itself in every frame.
    """

    def __init__(self, config: AnalyserConfig = PRESETS["tiny"]) -> None:
        super().__init__()
        self.config = config
        widths = config.channels

        def stage(width: int, blocks: int) -> nn.Sequential:
            return nn.Sequential(*(Block(width) for _ in range(blocks)))

        self.stem = nn.Conv2d(COLOURS, widths[0], 2 * CELL, stride=CELL, padding=CELL // 2)
        self.down = nn.ModuleList(nn.Conv2d(c, d, 2, stride=2) for c, d in pairwise(widths))
        self.encoder = nn.ModuleList(map(stage, widths, config.encoder))
        self.entering = nn.ModuleList(nn.Linear(FRAMES, c, bias=False) for c in widths)
        self.leaving = nn.ModuleList(nn.Linear(FRAMES, c, bias=False) for c in widths[:-1])
        self.up = nn.ModuleList(nn.Conv2d(d, c, 1) for c, d in pairwise(widths))
        self.decoder = nn.ModuleList(map(stage, widths[:-1], config.decoder))
        self.mix = nn.Conv2d(widths[0], config.head, 3, padding=1)
        self.code = nn.Conv2d(config.head, IMAGES * config.values, 1)
        self.dioptres = nn.Conv2d(config.head, 1, 1)
        self.position = nn.Conv2d(widths[-1], FRAMES, 1)
        nn.init.zeros_(self.code.weight)
        nn.init.zeros_(self.code.bias)  # type: ignore[arg-type]

    def forward(self, photo: Tensor, position: Tensor) -> Analysis:
        x, skips = self.stem(photo), []
        for level, blocks in enumerate(self.encoder):
            x = self.down[level - 1](x) if level else x
            x = blocks(x + self.entering[level](position)[:, :, None, None])
            skips.append(x)
        likely = self.position(x).mean((-1, -2))
        for level in reversed(range(len(self.decoder))):
            position_bias = self.leaving[level](position)[:, :, None, None]
            x = self.decoder[level](enlarged(self.up[level](x), 2) + skips[level] + position_bias)
        x = F.relu(self.mix(x))
        return Analysis(self.code(x), self.dioptres(x), likely)


def enlarged(x: Tensor, factor: int) -> Tensor:
    """[B,C,H,W] -> [B,C,factor*H,factor*W], bilinear."""
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


def bands_of(photo: Tensor, count: int) -> list[Tensor]:
    """What a 3x3 binomial blur takes away from a photo [B,3,h,w] at every size, finest first.

    Smaller sizes are means of 2x2 pixels; the bands are [B,3,h/2**k,w/2**k]. No band has
    decimation's errors in it (the "algorithme a trous" of Holschneider et al., 1989).
    """
    row = photo.new_tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).expand(COLOURS, 1, 3, 3)
    found = []
    for level in range(count):
        photo = F.avg_pool2d(photo, 2) if level else photo
        edged = F.pad(photo, (1, 1, 1, 1), mode="replicate")
        found.append(photo - F.conv2d(edged, kernel, groups=COLOURS))
    return found


def change_of(code: Tensor, photo: Tensor, bands: int) -> tuple[Tensor, Tensor]:
    """What a code [B, N*(1+K+48), h/4, w/4] of N images adds to the photo [B,3,h,w] in each.

    Gives the change [B,N,3,h,w] and the gains of detail finer than the analysis [B,N,h/4,w/4].
    """
    batch, _, height, width = photo.shape
    values = 1 + bands + PIXELS
    images = code.shape[1] // values
    parts = code.reshape(batch, images, values, *code.shape[2:])
    gains, pixels = parts[:, :, 1 : 1 + bands], parts[:, :, 1 + bands :]
    total = None
    for level, band in reversed(list(enumerate(bands_of(photo, bands)))):
        scale = 2 ** min(level, 2)  # of the photo's size, one scale-th: coarser bands come up to it
        band = enlarged(band, 2**level // scale)
        gain = enlarged(gains[:, :, level].contiguous(), CELL // scale)
        term = gain[:, :, None] * band[:, None]
        if total is not None:
            total = enlarged(total.flatten(1, 2), term.shape[-1] // total.shape[-1])
            term = term + total.reshape(term.shape)
        total = term
    assert total is not None
    added = F.pixel_shuffle(pixels.reshape(batch, images * PIXELS, *code.shape[2:]), CELL)
    return total + added.reshape(batch, images, COLOURS, height, width), parts[:, :, 0]


def stack_of(analyser: Analyser, photo: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """The images [B,10,3,h,w] of photos [B,3,h,w] at the size of the analysis, and the dioptres.

    The frame at the photo's own position is the photo, exactly.
    """
    found: Analysis = analyser(photo, position)
    change, _ = change_of(found.code.float(), photo, analyser.config.bands)
    others = F.pad(1 - position, (0, 1), value=1.0)[:, :, None, None, None]
    return (photo[:, None] + change * others).clamp(-1, 1), found.dioptres


def load_analyser(folder: Path) -> Analyser:
    """An analyser's folder, config.json and model.safetensors, in fp32.

    UserError for a missing or foreign config, and for weights that are not exactly those it names.
    """
    config, weights = Path(folder) / CONFIG, Path(folder) / WEIGHTS
    for path in (config, weights):
        if not path.is_file():
            raise UserError(f"{folder} has no {path.name}: an analyser's folder holds both files")
    try:
        sizes = AnalyserConfig.model_validate_json(config.read_text(encoding="utf-8"))
        tensors = load_file(weights)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or "its text"
        raise UserError(f"{config} is no analyser's: {where}: {wrong['msg']}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read ({error}): train or copy it anew") from error
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in Analyser(sizes).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        name = min(expected.items() ^ found.items())[0]
        raise UserError(
            f"{weights} does not fit {config}: {name} is {found.get(name, 'absent')}, "
            f"{expected.get(name, 'absent')} is needed: take both from one training"
        )
    analyser = Analyser(sizes)
    analyser.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return analyser.eval()


def save_analyser(analyser: Analyser, folder: Path) -> None:
    """Write config.json and the weights in fp16, all or nothing."""
    state = {n: p.detach().half().contiguous().cpu() for n, p in analyser.state_dict().items()}
    with write_atomic(Path(folder)) as scratch:
        scratch.mkdir()
        text = json.dumps(analyser.config.model_dump(), indent=1)
        (scratch / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(state, scratch / WEIGHTS)


def one_hots(positions: Sequence[int] | Tensor) -> Tensor:
    """Focal positions 0..8 as [B, 9]."""
    return F.one_hot(torch.as_tensor(positions), FRAMES).to(torch.float32)
