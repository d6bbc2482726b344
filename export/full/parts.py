"""The networks of a reference that become files, and real inputs to calibrate and check them with.

Legend: T frames, C latent channels, I input channels of the UNet, H, W photo size, h, w latent
size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from pocketfocus.data.scenes import held_out_photos, train_photos
from pocketfocus.mobile.autoencoder import mobile_autoencoder
from pocketfocus.mobile.conditioning import baked
from pocketfocus.mobile.folders import open_component
from pocketfocus.mobile.pipeline import MobileDenoiser
from pocketfocus.models.autoencoder import latent_factor
from pocketfocus.models.loading import assemble
from pocketfocus.models.places import find_places
from pocketfocus.models.reference import ReferencePipeline, added_time_ids
from pocketfocus.photos.images import prepare
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError

SMALLEST = 64  # side of a photo that the published model takes, in pixels
BLUR_STEP = 1  # pixels of radius that a frame is blurred for each position it is away
Calls = list[tuple[Tensor]]


@dataclass(frozen=True)
class Part:
    """One network.

    Attributes:
        name: of its file.
        input: name of what it takes.
        output: name of what it gives.
        what: both in words.
        make: the fp32 network of an opened reference.
        inputs: what it takes in the reference's own inference, from stacks and their positions.
    """

    name: str
    input: str
    output: str
    what: str
    make: Callable[[ReferencePipeline], nn.Module]
    inputs: Callable[[ReferencePipeline, Sequence[tuple[Tensor, int]]], Calls]


def open_reference(spec: str) -> ReferencePipeline:
    """A reference whose networks are still on disk, memory-mapped where they are local."""
    return assemble(find_places(spec), open_component)


def make_unet(reference: ReferencePipeline) -> nn.Module:
    """The UNet of the first denoising step, without a photo's embedding.

    Step and embedding are biases (see mobile/conditioning.py): any other pair makes a file of the
    same operators and size.
    """
    denoiser = MobileDenoiser(reference.unet.config, reference.unet.state_dict())
    conditioning = denoiser.conditioning
    timestep = torch.tensor(0.25 * math.log(first_sigma(reference)))
    biases = conditioning.step(timestep, added_time_ids(1, timestep)[0])
    biases |= conditioning.photo(torch.zeros(reference.unet.config.cross_attention_dim))
    return baked(denoiser.network, biases)


def make_decoder(reference: ReferencePipeline) -> nn.Module:
    """The temporal decoder of a whole stack."""
    return mobile_autoencoder(reference.vae.config, reference.vae.state_dict()).decoder


def make_encoder(reference: ReferencePipeline) -> nn.Module:
    """The encoder of a photo."""
    return mobile_autoencoder(reference.vae.config, reference.vae.state_dict()).encoder


def first_sigma(reference: ReferencePipeline) -> float:
    """Noise level of the first step."""
    return float(reference.scheduler.config.sigma_max)


@torch.no_grad()
def unet_inputs(reference: ReferencePipeline, stacks: Sequence[tuple[Tensor, int]]) -> Calls:
    """Scaled noisy latents and condition, [T,I,h,w], as in training at the first step's sigma."""
    encoder, sigma = make_encoder(reference), first_sigma(reference)
    generator = torch.Generator().manual_seed(0)
    calls: Calls = []
    for stack, position in stacks:
        latents = encoder(stack)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = reference.vae.config.scaling_factor * latents + sigma * noise
        own = latents[position : position + 1]
        condition = reference.condition(own, torch.tensor([position]))[0]
        calls.append((torch.cat([noisy / math.sqrt(sigma**2 + 1), condition], dim=1),))
    return calls


@torch.no_grad()
def decoder_inputs(reference: ReferencePipeline, stacks: Sequence[tuple[Tensor, int]]) -> Calls:
    """Unscaled latents [T,C,h,w]."""
    encoder = make_encoder(reference)
    return [(encoder(stack),) for stack, _ in stacks]


def encoder_inputs(reference: ReferencePipeline, stacks: Sequence[tuple[Tensor, int]]) -> Calls:
    """Photos [1,3,H,W] in [-1, 1]."""
    return [(stack[position : position + 1],) for stack, position in stacks]


PARTS = {
    part.name: part
    for part in (
        Part(
            "unet",
            "sample",
            "velocity",
            "scaled noisy latents and condition [T,I,h,w] -> v-prediction [T,C,h,w]",
            make_unet,
            unet_inputs,
        ),
        Part(
            "decoder",
            "latents",
            "stack",
            "unscaled latents [T,C,h,w] -> frames [T,3,H,W] in [-1, 1]",
            make_decoder,
            decoder_inputs,
        ),
        Part(
            "encoder",
            "photo",
            "latent",
            "photo [1,3,H,W] in [-1, 1] -> unscaled latent [1,C,h,w]",
            make_encoder,
            encoder_inputs,
        ),
    )
}


def calibration_stacks(size: tuple[int, int]) -> list[tuple[Tensor, int]]:
    """The photos that training may use, at all positions in turn; size is (H, W)."""
    photos = train_photos()
    return [
        (blurred(fitted(photos[position % len(photos)], size), position), position)
        for position in range(FRAMES)
    ]


def check_stack(size: tuple[int, int]) -> tuple[Tensor, int]:
    """A photo that no file was calibrated with."""
    position = FRAMES // 2
    return blurred(fitted(held_out_photos()[0], size), position), position


def fitted(photo: Any, size: tuple[int, int]) -> Tensor:
    """The middle of an RGB photo, [1,3,H,W] in [-1, 1]."""
    width_height = (size[1], size[0])
    image = ImageOps.fit(Image.fromarray(photo), width_height, Image.Resampling.LANCZOS)
    return prepare(image, size).float()


def blurred(photo: Tensor, position: int) -> Tensor:
    """A stack [T,3,H,W] of a photo [1,3,H,W]: each frame a box blur wider the farther it is from
    the photo's own position."""

    def frame(distance: int) -> Tensor:
        radius = BLUR_STEP * distance
        padded = F.pad(photo, (radius,) * 4, mode="replicate")
        return F.avg_pool2d(padded, 2 * radius + 1, stride=1)

    return torch.cat([frame(abs(n - position)) for n in range(FRAMES)])


def check_size(reference: ReferencePipeline, size: tuple[int, int]) -> None:
    """UserError unless (H, W) are multiples of what all networks divide by."""
    widths = len(reference.unet.config.block_out_channels)
    multiple = latent_factor(reference.vae) * 2 ** (widths - 1)
    if size[0] % multiple or size[1] % multiple or min(size) < multiple:
        raise UserError(
            f"photos of {size[1]}x{size[0]} do not fit this reference: choose a --size with both "
            f"sides multiples of {multiple}, such as {multiple}x{multiple}"
        )


def named_parts(names: Sequence[str]) -> Iterator[Part]:
    """Parts by their names; UserError for unknown ones."""
    for name in names:
        if name not in PARTS:
            raise UserError(f"unknown part '{name}': choose from {', '.join(PARTS)}")
        yield PARTS[name]
