"""The whole pipeline against diffusers' own, nothing of which is replaced."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as theirs
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor

from pocketfocus.models import clip
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.sampling import Sampling
from pocketfocus.photos.images import to_tensor
from pocketfocus.run.constants import FRAMES
from tests.published import small_svd

STEPS, NEEDED = 3, 80.0  # dB
SIZES = [(64, 128), (320, 256), (256, 512)]  # smaller than CLIP's 224, and larger


@pytest.fixture(scope="module")
def svd() -> StableVideoDiffusionPipeline:
    """A random one whose stacks depend on the embedding as clearly as on the photo's latent."""
    made = small_svd()
    with torch.no_grad():
        made.image_encoder.visual_projection.weight.mul_(20)
    for part in (made.vae, made.unet, made.image_encoder):
        part.eval().requires_grad_(False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def ours(svd: StableVideoDiffusionPipeline) -> ReferencePipeline:
    return ReferencePipeline(svd.vae, svd.unet, svd.image_encoder, svd.scheduler)


def picture(size: tuple[int, int]) -> Image.Image:
    """Blocks of noise: fine and coarse detail, in every colour."""
    generator = np.random.default_rng(2)
    coarse = generator.integers(0, 256, (size[0] // 16, size[1] // 16, 3))
    fine = generator.integers(-60, 60, (*size, 3))
    pixels = np.kron(coarse, np.ones((16, 16, 1), int)) + fine
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def signed_extractor() -> CLIPImageProcessor:
    """CLIP's normalisation of pixels in [0,1], so that it equals that of the same in [-1,1]: how
    the authors feed it."""
    mean = [(value + 1) / 2 for value in clip.MEAN]
    return CLIPImageProcessor(image_mean=mean, image_std=[value / 2 for value in clip.STD])


def placed_at(position: int) -> Callable[..., Any]:
    """SVD repeats the photo's latent at every frame: leave it at one, as the authors do."""

    def hook(_: object, given: tuple[Any, ...]) -> tuple[Any, ...]:
        sample, *rest = given
        frames = torch.arange(FRAMES)[:, None, None, None]
        own = torch.where(frames == position, sample[:, :, 4:], 0.0)
        return torch.cat([sample[:, :, :4], own], dim=2), *rest

    return hook


def expected(
    svd: StableVideoDiffusionPipeline, photo: Image.Image, position: int, noise: Tensor
) -> Tensor:
    """The stack [9,3,H,W] in [0,1] of diffusers' pipeline."""
    pipe = StableVideoDiffusionPipeline(
        vae=svd.vae,
        image_encoder=svd.image_encoder,
        unet=svd.unet,
        scheduler=EulerDiscreteScheduler.from_config(svd.scheduler.config),
        feature_extractor=signed_extractor(),
    )
    pipe.set_progress_bar_config(disable=True)
    placed = svd.unet.register_forward_pre_hook(placed_at(position))
    try:
        return pipe(
            image=photo,
            height=photo.height,
            width=photo.width,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            min_guidance_scale=1.5,
            max_guidance_scale=1.5,
            fps=7,
            motion_bucket_id=0,
            noise_aug_strength=0.0,
            decode_chunk_size=8,
            latents=noise.clone(),
            output_type="pt",
        ).frames[0]
    finally:
        placed.remove()


def psnr(first: Tensor, second: Tensor) -> float:
    return -10 * math.log10(float((first - second).double().square().mean()) + 1e-30)


def made(ours: ReferencePipeline, photo: Image.Image, position: int, noise: Tensor) -> Tensor:
    """The stack [9,3,H,W] in [0,1] of our pipeline."""
    stack = ours.decode(ours.sample(to_tensor(photo), position, noise, Sampling(STEPS)))
    return (stack.clamp(-1, 1) + 1) / 2


def noise_for(ours: ReferencePipeline, photo: Image.Image) -> Tensor:
    shape = ours.latent_shape(to_tensor(photo))
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("position", "size"), [(0, (64, 128)), (4, (128, 64)), (8, (64, 256))])
def test_stacks_are_those_of_diffusers_pipeline(
    svd: StableVideoDiffusionPipeline,
    ours: ReferencePipeline,
    position: int,
    size: tuple[int, int],
) -> None:
    photo = picture(size)
    noise = noise_for(ours, photo)
    wanted = expected(svd, photo, position, noise)
    assert psnr(made(ours, photo, position, noise), wanted) >= NEEDED


def test_what_clip_sees_decides(ours: ReferencePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any other form, stacks would not be those."""
    photo = picture((64, 128))
    noise = noise_for(ours, photo)
    right = made(ours, photo, 0, noise)
    for form in (clip.training_pixels, clip.own_pixels):
        monkeypatch.setattr("pocketfocus.models.reference.published_pixels", form)
        assert psnr(made(ours, photo, 0, noise), right) < NEEDED / 2, form.__name__


@pytest.mark.parametrize("size", SIZES)
def test_the_embedding_is_the_authors(
    svd: StableVideoDiffusionPipeline, ours: ReferencePipeline, size: tuple[int, int]
) -> None:
    """Their pipeline gives diffusers' `_encode_image` the resized photo in [-1,1], a tensor, which
    it normalises as it is; their training brings it to [0,1] before."""
    pixels = to_tensor(picture(size))
    small = theirs._resize_with_antialiasing(pixels, (224, 224))
    torch.testing.assert_close(clip.resized(pixels), small, rtol=1e-5, atol=1e-5)
    for given, form in ((small, None), ((small + 1) / 2, clip.training_pixels)):
        wanted = svd._encode_image(given, torch.device("cpu"), 1, False)
        torch.testing.assert_close(ours.embed(pixels, form), wanted, rtol=1e-4, atol=1e-5)


# Of `picture`, by their `_resize_with_antialiasing` and CLIP's normalisation of what that gives.
RECORDED = {
    (64, 128): [[-0.1134, -3.0112, 1.4036, -4.9568], [-5.0388, -4.0783, 0.1262, 0.9115]],
    (320, 256): [[-0.1427, 0.0197, -0.3562, -3.0811], [-2.2174, -5.7466, 0.4139, 0.8754]],
    (256, 512): [[-0.3413, 0.3954, -5.0168, -0.6623], [-3.4371, -4.2594, 0.1595, -1.0385]],
}


@pytest.mark.parametrize("size", SIZES)
def test_what_clip_sees_is_as_recorded(size: tuple[int, int]) -> None:
    """Whatever diffusers does by then."""
    made = clip.published_pixels(to_tensor(picture(size)))
    rows = torch.tensor([0, 37, 111, 180])
    found = made[0, :2, rows, 2 * rows % 224]
    torch.testing.assert_close(found, torch.tensor(RECORDED[size]), rtol=0, atol=1e-3)


def test_a_batch_is_embedded_as_its_photos(ours: ReferencePipeline) -> None:
    photos = torch.cat([to_tensor(picture(SIZES[1])), -to_tensor(picture(SIZES[1]))])
    alone = torch.cat([ours.embed(photo[None]) for photo in photos])
    torch.testing.assert_close(ours.embed(photos), alone, rtol=1e-4, atol=1e-5)
