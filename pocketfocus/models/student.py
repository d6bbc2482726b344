"""The student: a photo and where it was focused in, what refocusing changes out, in one pass.

Defocus weakens the bands of a picture (Burt and Adelson, 1983) by gains that vary slowly in space,
so a U-Net says at a quarter of its photo's size how much of each band every image keeps.
What blur has removed has to be restored: for that it adds pixels. All of that is done once a photo,
at a moderate size; `models.render` makes images of it at the photo's own size, at any focus and
aperture, with a few multiplications a pixel. Detail finer than the analysis follows a gain of its
own, so what is rendered is no enlargement.

Design: the ten images, nine frames and the picture that is sharp everywhere, are channels of one
pass, and the network has dense convolutions, ReLU and bilinear enlargement alone, without
normalisation: what XNNPACK and Core ML take whole, and what gains most by 8 bits. One-step
regression at a fixed timestep with zero noise follows E2E-FT (arXiv 2409.11355).

Legend: B batch (1 on a phone), K bands, C channels, h, w size of the analysis, H, W of a picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pocketfocus.models.places import STUDENT, STUDENTS
from pocketfocus.models.prior import MULTIPLE as PRIOR_MULTIPLE
from pocketfocus.models.prior import Prior
from pocketfocus.run.constants import FRAMES, IMAGES
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic
from pocketfocus.run.rows import part_of

STUDENT_FILES = CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"
CLASS_NAME = "_class_name"  # in CONFIG_FILE
COLOURS = 3
CELL = 4  # pixels of the analysis, a side, that one place of the network's outputs speaks of
COARSE = 2  # the first band as coarse as these outputs
JOINED = 2  # the level that a prior joins
PIXELS = COLOURS * CELL**2
SECOND_CONVOLUTION = 0.3  # of a block, at first, against the usual start: no norm keeps scale


class Encoded(NamedTuple):
    """What the network says of photos.

    detail [B,10,h/4,w/4], gains of detail finer than the analysis; gains [B,10*K,h/4,w/4], ten of
    each band, finest first; pixels [B,10*48,h/4,w/4], for every image and colour the 4x4 pixels of
    a place; dioptres as of `Analysis`; position [B,9], the logits of what it has there.
    """

    detail: Tensor
    gains: Tensor
    pixels: Tensor
    dioptres: Tensor
    position: Tensor

    def floats(self) -> Encoded:
        """All of it in full precision."""
        return Encoded(*(tensor.float() for tensor in self))


class Analysis(NamedTuple):
    """What is known of photos once they are analysed: what a student's files give.

    stack [B*9,3,h,w] in [-1,1], the frames at the size of the analysis; sharp [B,3,h,w] in [-1,1],
    the picture that is sharp everywhere; detail [B,10,h,w], what becomes of detail finer than the
    analysis in each of these ten images, as a gain: 0 keeps it, -1 takes it away; dioptres
    [B,1,h/4,w/4], the distance of each place in units of 20 dioptres (near 1, infinity 0), which
    teaches the network where things lie, and tells apps; positions [B,9], how likely it is that the
    photo was taken at each of the focal positions, of meaning where the student was not told.
    """

    stack: Tensor
    sharp: Tensor
    detail: Tensor
    dioptres: Tensor
    positions: Tensor


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


class Network(nn.Module):
    """A U-Net without normalisation, from a quarter of the photo's size down.

    `forward(photo [B,3,h,w] in [-1,1], position one-hot [B,9])` gives `Encoded`; a position of
    zeros stands for an unknown one. Level i has `channels[i]` and works at 1/2**(i+2) of the size,
    with `encoder[i]` residual blocks on the way down and `decoder[i]` on the way up, one level
    fewer; `head` is the width of the layer before the last ones, of which one gives gains of
    `bands` bands. With `prior`, the width of what it says, a `Prior` of depth joins the third
    level. Untrained, nothing changes. What the last layers give is not cut out of one layer's
    output, for XNNPACK copies what is cut out: 12 of 190 ms.
    """

    def __init__(
        self,
        channels: Sequence[int],
        encoder: Sequence[int],
        decoder: Sequence[int],
        head: int,
        bands: int,
        prior: int,
    ) -> None:
        super().__init__()

        def stage(width: int, blocks: int) -> nn.Sequential:
            return nn.Sequential(*(Block(width) for _ in range(blocks)))

        self.stem = nn.Conv2d(COLOURS, channels[0], 2 * CELL, stride=CELL, padding=CELL // 2)
        self.down = nn.ModuleList(nn.Conv2d(c, d, 2, stride=2) for c, d in pairwise(channels))
        self.encoder = nn.ModuleList(map(stage, channels, encoder))
        self.entering = nn.ModuleList(nn.Linear(FRAMES, c, bias=False) for c in channels)
        self.leaving = nn.ModuleList(nn.Linear(FRAMES, c, bias=False) for c in channels[:-1])
        self.up = nn.ModuleList(nn.Conv2d(d, c, 1) for c, d in pairwise(channels))
        self.decoder = nn.ModuleList(map(stage, channels[:-1], decoder))
        self.mix = nn.Conv2d(channels[0], head, 3, padding=1)
        self.detail = nn.Conv2d(head, IMAGES, 1)
        self.gains = nn.Conv2d(head, IMAGES * bands, 1)
        self.pixels = nn.Conv2d(head, IMAGES * PIXELS, 1)
        self.dioptres = nn.Conv2d(head, 1, 1)
        self.prior = Prior(channels[JOINED], prior) if prior else None
        self.joined = nn.Conv2d(prior, channels[JOINED], 1) if prior else None
        self.position = nn.Conv2d(prior or channels[-1], FRAMES, 1)
        for layer in (self.detail, self.gains, self.pixels, self.joined):
            for parameter in layer.parameters() if layer else ():
                nn.init.zeros_(parameter)

    def encoded(self, photo: Tensor, position: Tensor) -> list[Tensor]:
        """What the levels of the way down give, finest first."""
        x, skips = self.stem(photo), []
        for level, blocks in enumerate(self.encoder):
            x = self.down[level - 1](x) if level else x
            x = blocks(x + self.entering[level](position)[:, :, None, None])
            skips.append(x)
        return skips

    def forward(self, photo: Tensor, position: Tensor) -> Encoded:
        skips = self.encoded(photo, position)
        said = skips[-1]
        if self.prior is not None and self.joined is not None:
            said = self.prior(photo, skips[JOINED])
            skips[JOINED] = skips[JOINED] + self.joined(said)
        likely = self.position(said).mean((-2, -1), keepdim=True).flatten(1)
        x = skips[-1]
        for level in reversed(range(len(self.decoder))):
            bias = self.leaving[level](position)[:, :, None, None]
            x = self.decoder[level](enlarged(self.up[level](x)) + skips[level] + bias)
        x = F.relu(self.mix(x))
        parts = self.detail(x), self.gains(x), self.pixels(x)
        return Encoded(*parts, self.dioptres(x), likely)


class Bands(nn.Module):
    """What a binomial blur of 3x3 pixels takes away from the photo, at every size.

    `forward(photo [B,3,H,W]) -> K bands [B,3,H/2**k,W/2**k]`, finest first; smaller sizes are means
    of 2x2 pixels, H and W multiples of 2**(K-1). In a Laplacian pyramid, which takes away what the
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


def enlarged(x: Tensor, factor: float = 2.0) -> Tensor:
    """Enlarge [B,C,H,W] bilinearly to [B,C,factor*H,factor*W]."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def edged(x: Tensor) -> Tensor:
    """Repeat the edges of [B,C,H,W] to [B,C,H+2,W+2]; XNNPACK has no such padding."""
    x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
    return torch.cat([x[..., :1], x, x[..., -1:]], dim=3)


Width = Annotated[int, Field(ge=1, le=2048)]
Blocks = Annotated[int, Field(ge=0, le=64)]


class StudentConfig(BaseModel):
    """The sizes of a student, its config.json; see `Network` and `RefocusStudent`.

    They are bounded, so that a broken file is refused before memory is taken.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=6)] = (64, 128, 192)
    encoder: tuple[Blocks, ...] = (2, 3, 4)
    decoder: tuple[Blocks, ...] = (2, 3)
    head: Width = 128
    bands: Annotated[int, Field(ge=3, le=6)] = 4
    prior: Annotated[int, Field(ge=0, le=2048)] = 0
    size: tuple[Annotated[int, Field(ge=16, le=4096)], Annotated[int, Field(ge=16, le=4096)]] = (
        320,
        448,
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        levels = len(self.channels)
        if len(self.encoder) != levels or len(self.decoder) != levels - 1:
            raise ValueError(
                f"{levels} levels need as many numbers in encoder and one fewer in decoder, these "
                f"are {len(self.encoder)} and {len(self.decoder)}"
            )
        if self.prior and levels <= JOINED:
            raise ValueError(f"a prior joins level {JOINED + 1}, there are {levels}")
        if any(side % self.multiple for side in self.size):
            raise ValueError(f"sides of size are multiples of {self.multiple}")
        return self

    @property
    def multiple(self) -> int:
        """What both sides of a photo that is analysed are multiples of."""
        halvings = (len(self.channels) - 1, self.bands - 1 - COARSE)
        return max(CELL * 2 ** max(halvings), PRIOR_MULTIPLE if self.prior else 1)


class RefocusStudent(nn.Module):
    """Photo and position to focal stack, and all that `render` makes other images of.

    `forward(photo [B,3,h,w] in [-1,1], position one-hot [B,9])` gives an `Analysis`; h and w are
    multiples of `multiple`, and a position of zeros stands for an unknown one. The frame at
    `position` is the photo, exactly; the untrained network gives the photo in all of them, as the
    `copy` baseline.

    Args:
        sizes: fields of `StudentConfig`: channels, encoder, decoder and head of the network; how
            many of the photo's bands have gains; (height, width) of the photo that exported files
            take, pixels. ValueError for sizes that do not fit each other.
    """

    images: Tensor

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        config = self.config = StudentConfig(**sizes)
        levels = (config.channels, config.encoder, config.decoder)
        self.network = Network(*levels, config.head, config.bands, config.prior)
        self.pyramid = Bands(config.bands)
        self.register_buffer("images", torch.eye(IMAGES, FRAMES), persistent=False)

    @property
    def photo_size(self) -> tuple[int, int]:
        """(H, W) of the photo that its files take, pixels."""
        return self.config.size

    @property
    def multiple(self) -> int:
        """Both sides of the photo that is analysed are multiples of this many pixels."""
        return self.config.multiple

    def forward(self, photo: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        height, width = photo.shape[-2:]
        found: Encoded = self.network(photo, position)
        change, detail = self.compose(photo, found, position)
        ends = FRAMES * COLOURS
        frames = change[:, :ends].reshape(-1, COLOURS, height * width)
        stack = repeated(photo.flatten(2), len(photo), FRAMES) + frames
        return (  # no named tuple: ExecuTorch writes none
            F.hardtanh(stack).reshape(-1, COLOURS, height, width),  # which XNNPACK adds along with
            F.hardtanh(photo + change[:, ends:]),
            enlarged(detail, float(CELL)),
            found.dioptres,
            found.position.softmax(-1),
        )

    def analyse(self, photo: Tensor, position: Tensor) -> Analysis:
        """What `forward` gives, by name."""
        return Analysis(*self(photo, position))

    def stack(self, photo: Tensor, position: Tensor) -> Tensor:
        """The frames alone, [B*9,3,h,w]."""
        return self.analyse(photo, position).stack

    def compose(self, photo: Tensor, found: Encoded, position: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to a photo [B,3,h,w] in each of the ten images, [B,30,h,w], and their gains
        of finer detail [B,10,h/4,w/4].

        What the network found of the frame at `position` does not count. No tensor has more than
        five dimensions. Whole numbers are written as floats: ExecuTorch converts integers at run
        time, outside the delegate.
        """
        others = 1.0 - F.linear(position, self.images)
        bands = self.pyramid(photo)
        change: Tensor | None = None
        for level in reversed(range(len(bands))):
            gain, band = found.gains[:, level * IMAGES : (level + 1) * IMAGES], bands[level]
            if level < COARSE:  # finer than the outputs: all that is coarser is enlarged once
                change = None if change is None else enlarged(change)
                gain = enlarged(gain, 2.0 ** (COARSE - level))
            elif level > COARSE:
                band = enlarged(band, 2.0 ** (level - COARSE))
            term = weighted(gain, band)
            change = term if change is None else change + term
        assert change is not None
        change = change + shuffled(found.pixels)
        counted = change.reshape(-1, COLOURS, math.prod(photo.shape[-2:]))
        change = (counted * others.reshape(-1, 1, 1)).reshape(change.shape)
        return change, found.detail * others[:, :, None, None]


def weighted(gain: Tensor, band: Tensor) -> Tensor:
    """Multiply gains [B,10,H,W] with a band [B,3,H,W] image by image: [B,30,H,W].

    Pixels are in one last dimension: XNNPACK multiplies runs of it, not three colours at a time.
    """
    batch, images, height, width = gain.shape
    flat = repeated(band.flatten(2), batch, images)
    product = gain.reshape(-1, 1, height * width) * flat
    return product.reshape(batch, images * COLOURS, height, width)


def repeated(images: Tensor, batch: int, times: int) -> Tensor:
    """Repeat [B,3,N] as [B*times,3,N], or leave it as it is for one photo, which broadcasts."""
    return images.repeat_interleave(times, dim=0) if batch > 1 else images


def shuffled(x: Tensor) -> Tensor:
    """Pixel shuffle (Shi et al., 2016): [B,C*16,H,W] -> [B,C,4*H,4*W].

    Written out for one photo, as not every runtime's operator takes what quantization leaves.
    """
    batch, channels, height, width = x.shape
    count = channels // CELL**2
    cells = x.reshape(batch * count, CELL, CELL, height, width).permute(0, 3, 1, 4, 2)
    return cells.reshape(batch, count, CELL * height, CELL * width)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"prior": 96},  # shipped
    "phone": {  # sees more at once, and twice as finely
        "prior": 64,
        "channels": (64, 128, 192, 256),
        "encoder": (2, 2, 3, 4),
        "decoder": (2, 2, 3),
        "size": (640, 896),
    },
    "micro": {  # for tests
        "channels": (8, 16),
        "encoder": (1, 1),
        "decoder": (1,),
        "head": 16,
        "bands": 3,
        "size": (64, 64),
    },
}
"""Sizes of students by name: arguments of `RefocusStudent` that differ from its own."""


def build_student(preset: str = "tiny") -> RefocusStudent:
    """Return an untrained student; UserError names the presets."""
    if preset not in PRESETS:
        raise UserError(f"no student preset '{preset}': choose from {', '.join(PRESETS)}")
    return RefocusStudent(**PRESETS[preset])


SHIPPED_WEIGHTS = STUDENTS[STUDENT]


def load_student(folder: Path | None = None) -> RefocusStudent:
    """Load a student folder (config.json + safetensors) in fp32; None is the shipped one.

    Raises UserError for a missing or foreign config, one of an older student, pickled or unfitting
    weights.
    """
    folder = Path(folder) if folder is not None else SHIPPED_WEIGHTS
    student = RefocusStudent(**_read_config(folder).model_dump())
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors: pickled checkpoints are refused")
    weights: dict[str, Tensor] = {}
    try:
        for path in files:
            weights |= load_file(path)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"the weights in {folder} cannot be read ({reason}): distil anew"
        ) from error
    _divide_last(weights, student.config.bands)
    _check_weights(folder, weights, student.state_dict())
    student.load_state_dict({name: value.float() for name, value in weights.items()})
    return student.eval()


def _read_config(folder: Path) -> StudentConfig:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG_FILE}: a student folder is what `distill` writes")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        name = found.get(CLASS_NAME)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): distil the student anew") from error
    if name != RefocusStudent.__name__:
        raise UserError(f"{folder} holds a {name}, a student is a {RefocusStudent.__name__}")
    if "blocks" in found:
        raise UserError(
            f"{folder} holds a student of pocketfocus before 0.4, whose frames had one size: "
            "distil it anew, or take the shipped one"
        )
    sizes = {name: value for name, value in found.items() if not name.startswith("_")}
    return part_of(f"{path} describes no student", StudentConfig, sizes, "distil the student anew")


def _divide_last(weights: dict[str, Tensor], bands: int) -> None:
    """Make the last three layers of the one that older students have in their place."""
    counts = {"detail": IMAGES, "gains": IMAGES * bands, "pixels": IMAGES * PIXELS}
    for kind in ("weight", "bias"):
        whole = weights.get(f"network.outputs.{kind}")
        if whole is not None and len(whole) == sum(counts.values()):
            del weights[f"network.outputs.{kind}"]
            parts = torch.split(whole, list(counts.values()))
            for name, part in zip(counts, parts, strict=True):
                weights[f"network.{name}.{kind}"] = part


def _check_weights(folder: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise UserError, naming the first difference, for weights that are not those of a student."""
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            reason = f"{name} is missing"
        elif name not in wanted:
            reason = f"{name} is none of its tensors"
        elif found[name].shape != wanted[name].shape:
            shapes = list(found[name].shape), list(wanted[name].shape)
            reason = f"{name} is {shapes[0]}, not {shapes[1]}"
        elif not found[name].is_floating_point() or not bool(found[name].isfinite().all()):
            reason = f"{name} holds what are no finite numbers"
        else:
            continue
        raise UserError(f"the weights in {folder} do not fit its {CONFIG_FILE} ({reason})")


def save_student(student: RefocusStudent, folder: Path, half: bool = True) -> None:
    """Write config.json and weights, safetensors in fp16 or as they are, atomically."""
    config = {CLASS_NAME: RefocusStudent.__name__, **student.config.model_dump(mode="json")}
    weights = {
        name: (value.half() if half else value).detach().cpu().contiguous()
        for name, value in student.state_dict().items()
    }
    with write_atomic(folder) as scratch:
        scratch.mkdir()
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (scratch / CONFIG_FILE).write_text(text, encoding="utf-8")
        save_file(weights, scratch / WEIGHTS_FILE, {"format": "pt"})
