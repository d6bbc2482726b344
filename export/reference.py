"""The networks of a reference that become files, and real calls to calibrate and check them with.

Legend: T frames, C latent channels, I input channels of the UNet, H, W photo size, h, w latent
size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from pocketfocus.data.scenes import TRAIN_PHOTOS, held_out_photos, train_photos
from pocketfocus.export.network import Calls, Network, Source
from pocketfocus.mobile.autoencoder import MobileAutoencoder, mobile_autoencoder
from pocketfocus.mobile.conditioning import baked
from pocketfocus.mobile.folders import Opened, open_component
from pocketfocus.mobile.pipeline import MobileDenoiser
from pocketfocus.models.autoencoder import latent_factor
from pocketfocus.models.loading import assemble, attempt, component_folder
from pocketfocus.models.places import find_places
from pocketfocus.models.reference import ReferencePipeline, added_time_ids
from pocketfocus.quantize.calibration import fitted
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Manifest, TensorSpec

SMALLEST = 64  # side of a photo that the published model takes, in pixels
BLUR_STEP = 1  # pixels of radius that a frame is blurred for each position it is away
UNMEASURED = (-math.inf, math.inf)
Stacks = Sequence[tuple[Tensor, int]]
"""Stacks [T,3,H,W] in [-1, 1], each with the position of the photo that it comes from."""
Shapes = tuple[tuple[int, ...], tuple[int, ...]]
"""The shapes of what a network takes and gives."""


@dataclass(frozen=True)
class Part:
    """One network of an opened reference.

    Attributes:
        input: name of what it takes.
        output: name of what it gives.
        make: the network, fp32.
        calls: what it takes in the reference's own inference, from stacks.
        shapes: for a photo of (H, W).
    """

    input: str
    output: str
    make: Callable[[ReferencePipeline], nn.Module]
    calls: Callable[[ReferencePipeline, Stacks], Calls]
    shapes: Callable[[ReferencePipeline, int, int], Shapes]


def open_reference(spec: str) -> ReferencePipeline:
    """A reference whose networks are still on disk, memory-mapped where they are local."""
    return assemble(find_places(spec), _open)


def _open(cls: Any, root: str, subfolder: str, preferred: str | None) -> Any:
    """As `open_component`; of the image encoder, which no file holds, the config alone."""
    folder = component_folder(root, subfolder)
    if cls is not CLIPVisionModelWithProjection or folder is None:
        return open_component(cls, root, subfolder, preferred)
    config = cls.config_class
    return Opened(attempt(lambda: config.from_pretrained(folder), root, subfolder), {})


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


def make_autoencoder(reference: ReferencePipeline) -> MobileAutoencoder:
    """The encoder of a photo and the temporal decoder of a whole stack."""
    return mobile_autoencoder(reference.vae.config, reference.vae.state_dict())


def first_sigma(reference: ReferencePipeline) -> float:
    """Noise level of the first step."""
    return float(reference.scheduler.config.sigma_max)


@torch.no_grad()
def unet_calls(reference: ReferencePipeline, stacks: Stacks) -> Calls:
    """Scaled noisy latents and condition, [T,I,h,w], as in training at the first step's sigma."""
    encoder, sigma = make_autoencoder(reference).encoder, first_sigma(reference)
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
def decoder_calls(reference: ReferencePipeline, stacks: Stacks) -> Calls:
    """Unscaled latents [T,C,h,w]."""
    encoder = make_autoencoder(reference).encoder
    return [(encoder(stack),) for stack, _ in stacks]


def encoder_calls(reference: ReferencePipeline, stacks: Stacks) -> Calls:
    """Photos [1,3,H,W] in [-1, 1]."""
    return [(stack[position : position + 1],) for stack, position in stacks]


def unet_shapes(reference: ReferencePipeline, height: int, width: int) -> Shapes:
    """[T,I,h,w] to the v-prediction [T,C,h,w]."""
    factor, config = latent_factor(reference.vae), reference.unet.config
    size = (height // factor, width // factor)
    return (FRAMES, config.in_channels, *size), (FRAMES, config.out_channels, *size)


def decoder_shapes(reference: ReferencePipeline, height: int, width: int) -> Shapes:
    """[T,C,h,w] to frames [T,3,H,W] in [-1, 1]."""
    factor = latent_factor(reference.vae)
    latents = (reference.vae.config.latent_channels, height // factor, width // factor)
    return (FRAMES, *latents), (FRAMES, 3, height, width)


def encoder_shapes(reference: ReferencePipeline, height: int, width: int) -> Shapes:
    """[1,3,H,W] to an unscaled latent [1,C,h,w]."""
    latents, frames = decoder_shapes(reference, height, width)
    return (1, *frames[1:]), (1, *latents[1:])


PARTS = {
    "encoder": Part(
        "photo", "latent", lambda r: make_autoencoder(r).encoder, encoder_calls, encoder_shapes
    ),
    "decoder": Part(
        "latents", "stack", lambda r: make_autoencoder(r).decoder, decoder_calls, decoder_shapes
    ),
    "unet": Part("sample", "velocity", make_unet, unet_calls, unet_shapes),
}


def reference_source(spec: str, parts: Sequence[str], size: tuple[int, int]) -> Source:
    """Parts of a reference for photos of (H, W), which is open no longer than this takes.

    UserError for unknown parts, a reference that cannot be read, or a size that it does not take.
    """
    reference = open_reference(spec)
    manifest = Manifest(
        size=size,
        artifacts=[],
        reference=spec,
        sigma_steps=(first_sigma(reference),),
        calibration={"photos": list(TRAIN_PHOTOS), "positions": list(range(FRAMES))},
    )
    networks = reference_networks(reference, parts, size)
    return Source(networks, list(PARTS), (find_places(spec).key, size), manifest)


def reference_networks(
    reference: ReferencePipeline, names: Sequence[str], size: tuple[int, int]
) -> tuple[Network, ...]:
    """The named parts of a reference for photos of (H, W), which open it again when they need it.

    UserError for an unknown part, or a size that the reference does not take.
    """
    for name in names:
        if name not in PARTS:
            raise UserError(f"unknown part '{name}': choose from {', '.join(PARTS)}")
    check_size(reference, size)
    return tuple(_network(reference, name, size) for name in names)


def reference_network(spec: str, name: str, size: Sequence[int]) -> Network:
    """One of them, from its `origin`."""
    return _network(open_reference(spec), name, (size[0], size[1]))


def _network(reference: ReferencePipeline, name: str, size: tuple[int, int]) -> Network:
    part, spec = PARTS[name], reference.name
    given, made = part.shapes(reference, *size)

    @cache
    def calls() -> Calls:
        return part.calls(open_reference(spec), [check_stack(size), *calibration_stacks(size)])

    @torch.no_grad()
    def make() -> nn.Module:
        return part.make(open_reference(spec))

    return Network(
        name,
        make,
        (TensorSpec(part.input, given, "float32", UNMEASURED),),
        (TensorSpec(part.output, made, "float32", UNMEASURED),),
        lambda: calls()[1:],
        check=lambda: calls()[0],
        origin={"spec": spec, "name": name, "size": size},
    )


def calibration_stacks(size: tuple[int, int]) -> list[tuple[Tensor, int]]:
    """The photos that training may use, at all positions in turn; size is (H, W)."""
    photos = train_photos()
    return [
        (blurred(fitted(Image.fromarray(photos[position % len(photos)]), size), position), position)
        for position in range(FRAMES)
    ]


def check_stack(size: tuple[int, int]) -> tuple[Tensor, int]:
    """A photo that no file was calibrated with."""
    position = FRAMES // 2
    return blurred(fitted(Image.fromarray(held_out_photos()[0]), size), position), position


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
