"""The reference model: Learn2Refocus's pipeline, photo and focal position to focal stack.

Tedla et al., "Learning to Refocus with Video Diffusion Models" (SIGGRAPH Asia 2025): a fine-tuned
Stable Video Diffusion (arXiv 2311.15127) with position-dependent conditioning, sampled by Euler
steps of the EDM formulation (Karras et al., arXiv 2206.00364).

Legend: B batch, T = 9 frames, C latent channels, H, W photo size, h, w latent size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    UNetSpatioTemporalConditionModel,
)
from diffusers.utils import logging as diffusers_log
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPVisionModelWithProjection
from transformers.utils import logging as transformers_log

from pocketfocus.autoencoder import (
    QUARTERS,
    CompactAutoencoder,
    defocus_basis,
    latent_factor,
)
from pocketfocus.checkpoints import DIFFUSERS_STEM, TRANSFORMERS_STEM, find_weights
from pocketfocus.errors import UserError
from pocketfocus.optics import FRAMES
from pocketfocus.progress import track

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "reference"
LEARN2REFOCUS = "tedlasai/learn2refocus"
LEARN2REFOCUS_UNET = "checkpoint-200000/unet"
BASE = "stabilityai/stable-video-diffusion-img2vid"

MOST_STEPS = 1000
FPS_ID, MOTION_BUCKET, NOISE_AUGMENTATION = 6.0, 0.0, 0.0  # fps - 1, as SVD was trained
DECODE_CHUNK = 8
PLANES = 2  # channels of `spread_latent` beside the latent
BUFFER = "position_ids"  # a constant that older versions of transformers saved with the weights
CLIP_SIZE = 224
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Sampling:
    """How stacks are drawn: Euler steps, classifier-free guidance (1.0: none), and the temperature,
    the factor of the initial noise. At 0 one step gives the mean of all stacks that fit the photo,
    which has the least squared error."""

    steps: int = 25
    guidance: float = 1.5
    temperature: float = 1.0

    def changed(self, text: str) -> Sampling:
        """With what a text STEPS[/GUIDANCE[/TEMPERATURE]] says; UserError when it is not one."""
        parts = text.split("/")
        try:
            steps, *rest = int(parts[0]), *map(float, parts[1:])
        except ValueError:
            steps, rest = 0, []
        finite = all(math.isfinite(value) and value >= 0 for value in rest)
        if not 1 <= steps <= MOST_STEPS or len(rest) > 2 or not finite:
            raise UserError(
                f"'{text}' is no way to sample: write STEPS[/GUIDANCE[/TEMPERATURE]], 1 to "
                f"{MOST_STEPS} steps and numbers from 0 up, such as 25/1.5/1"
            )
        names = ("guidance", "temperature")
        return replace(self, steps=steps, **dict(zip(names, rest, strict=False)))


PUBLISHED = Sampling()
MEAN = Sampling(steps=1, guidance=1.0, temperature=0.0)


@dataclass
class ReferencePipeline:
    """The four components of the reference and the way Learn2Refocus drives them.

    `pipeline(photo [1,3,H,W] in [-1,1], position 0..8) -> stack [9,3,H,W] in [-1,1]`;
    H and W are multiples of 64.
    """

    vae: AutoencoderKLTemporalDecoder
    unet: UNetSpatioTemporalConditionModel
    image_encoder: CLIPVisionModelWithProjection
    scheduler: EulerDiscreteScheduler
    name: str = "default"

    def __call__(
        self,
        photo: Tensor,
        position: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Sample a focal stack, by default in the way of this reference, `self.sampling`."""
        check_photo(photo, position)
        noise = torch.randn(
            self.latent_shape(photo), generator=torch.Generator().manual_seed(seed)
        ).to(photo)
        latents = self.sample(photo, position, noise, sampling, progress)
        stack = self.decode(latents)
        if self.relative:
            stack = stack + self.lost_detail(photo)
        return stack.clamp(-1.0, 1.0)

    @property
    def relative(self) -> bool:
        """Whether latents are denoised as differences to the photo's; the published model: no."""
        return bool(self.vae.config.get("relative_latents", False))

    @property
    def sampling(self) -> Sampling:
        """The default way: as published, and the mean where latents are `relative`."""
        return MEAN if self.relative else PUBLISHED

    def latent_shape(self, photo: Tensor) -> tuple[int, int, int, int, int]:
        """(1, T, C, h, w) of the latents of `photo` [1,3,H,W]."""
        factor = latent_factor(self.vae)
        height, width = photo.shape[-2] // factor, photo.shape[-1] // factor
        return (1, FRAMES, self.vae.config.latent_channels, height, width)

    @torch.no_grad()
    def sample(
        self,
        photo: Tensor,
        position: int,
        noise: Tensor,
        sampling: Sampling | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Euler steps from `noise` [1,T,C,h,w] (unit variance) to scaled latents, same shape.

        With `relative`, what is denoised is the difference to the photo's own scaled latent, which
        is added at the end (cf. ResShift, arXiv 2307.12348, for super-resolution).
        """
        how = sampling or self.sampling
        scheduler = EulerDiscreteScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(how.steps, device=noise.device)
        latent, basis = self.encode(photo), self.basis(photo)
        condition = self.condition(latent, torch.tensor([position]))
        embedding = self.embed(photo)
        ids = added_time_ids(1, noise)
        latents = how.temperature * noise * scheduler.init_noise_sigma
        timesteps = scheduler.timesteps
        for t in track(timesteps, "denoising", len(timesteps)) if progress else timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            velocity = self.denoise(scaled, t, condition, embedding, ids, basis)
            if how.guidance != 1.0:
                zero = (torch.zeros_like(condition), torch.zeros_like(embedding))
                unconditional = self.denoise(scaled, t, *zero, ids, torch.zeros_like(basis))
                velocity = unconditional + how.guidance * (velocity - unconditional)
            latents = scheduler.step(velocity, t, latents).prev_sample
        if self.relative:
            latents = latents + self.vae.config.scaling_factor * latent[:, None]
        return latents

    def condition(self, latent: Tensor, positions: Tensor) -> Tensor:
        """What the UNet sees beside the noisy latents, from photos' latents [B,C,h,w] at
        `positions` [B]: [B,T,C,h,w] as in Learn2Refocus; [B,T,C+2,h,w], see `spread_latent`, when
        relative."""
        place = spread_latent if self.relative else place_latent
        return place(latent, positions)

    def denoise(
        self,
        scaled: Tensor,
        t: Tensor,
        condition: Tensor,
        embedding: Tensor,
        ids: Tensor,
        basis: Tensor,
    ) -> Tensor:
        """One UNet evaluation: v-prediction [B,T,C,h,w] from scaled noisy latents [B,T,C,h,w],
        its condition, CLIP embedding [B,1,E], and the photo's `basis` [B,G,C,h,w].

        The UNet's last G channels weigh the directions of the basis.
        """
        inputs = torch.cat([scaled, condition], dim=2)
        output: Tensor = self.unet(
            inputs, t, encoder_hidden_states=embedding, added_time_ids=ids, return_dict=False
        )[0]
        if not basis.shape[1]:
            return output
        channels = scaled.shape[2]
        velocity, weights = output[:, :, :channels], output[:, :, channels:]
        return velocity + torch.einsum("btghw,bgchw->btchw", weights, basis)

    def basis(self, photos: Tensor) -> Tensor:
        """What defocus does to photos [B,3,H,W], in scaled latents: [B,G,C,h,w].

        A relative reference's denoiser so predicts how much a place gets blurred (or, with a weight
        below zero, sharpened), as kernel prediction does (arXiv 1712.02327), beside the difference
        itself. G is 0 for the published model.
        """
        if not self.relative:
            return photos.new_zeros(len(photos), 0, 1, 1, 1)
        factor: float = self.vae.config.scaling_factor
        return factor * defocus_basis(self.vae, photos)

    def encode(self, photos: Tensor) -> Tensor:
        """Mode of the VAE posterior, *not* multiplied by the scaling factor: [B,3,H,W] in [-1,1]
        -> [B,C,h,w]."""
        mode: Tensor = self.vae.encode(photos).latent_dist.mode()
        return mode

    def embed(self, photos: Tensor) -> Tensor:
        """CLIP image embedding, the single cross-attention token: [B,3,H,W] -> [B,1,E]."""
        pixels = F.interpolate(
            photos, (CLIP_SIZE, CLIP_SIZE), mode="bicubic", antialias=True, align_corners=False
        )
        mean, std = photos.new_tensor(CLIP_MEAN), photos.new_tensor(CLIP_STD)
        pixels = ((pixels + 1) / 2 - mean[:, None, None]) / std[:, None, None]
        embedding: Tensor = self.image_encoder(pixels).image_embeds
        return embedding[:, None]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [1,T,C,h,w] -> stack [T,3,H,W], in chunks of 8 frames."""
        unscaled = latents[0] / self.vae.config.scaling_factor
        frames = [
            self.vae.decode(chunk, num_frames=len(chunk)).sample
            for chunk in unscaled.split(DECODE_CHUNK)
        ]
        return torch.cat(frames).float()

    @torch.no_grad()
    def lost_detail(self, photo: Tensor) -> Tensor:
        """What the autoencoder loses of the photo [1,3,H,W] at each of the positions, [T,3,H,W]."""
        latent = self.vae.config.scaling_factor * self.encode(photo)
        return photo - self.decode(latent[:, None].expand(-1, FRAMES, -1, -1, -1))


def place_latent(latent: Tensor, positions: Tensor) -> Tensor:
    """Learn2Refocus's condition [B,T,C,h,w]: latents [B,C,h,w] of photos at their own frames
    `positions` [B], zeros at the other eight."""
    condition = latent.new_zeros(len(latent), FRAMES, *latent.shape[1:])
    condition[torch.arange(len(latent)), positions] = latent
    return condition


def spread_latent(latent: Tensor, positions: Tensor) -> Tensor:
    """The condition of a relative reference, [B,T,C+2,h,w]: latents [B,C,h,w] of photos at every
    frame, as in Stable Video Diffusion, and two channels in [-1,1]: the frame's distance from the
    photo's own, (frame - position) / 8, and the photo's position, position / 4 - 1.

    With `place_latent` eight frames of nine can learn of the photo through temporal layers only. A
    network that starts at random then denoises without it: after 4000 steps its estimate from pure
    noise was still zero.
    """
    height, width = latent.shape[-2:]
    frame, own = torch.arange(FRAMES).to(latent), positions[:, None].to(latent)
    distance = (frame - own) / (FRAMES - 1)
    planes = torch.stack([distance, (2 * own / (FRAMES - 1) - 1).expand_as(distance)], dim=2)
    everywhere = latent[:, None].expand(-1, FRAMES, -1, -1, -1)
    planes = planes[..., None, None].expand(-1, -1, -1, height, width)
    return torch.cat([everywhere, planes], dim=2)


def added_time_ids(batch: int, like: Tensor) -> Tensor:
    """SVD's micro-conditioning [B,3]: fps - 1, motion bucket, noise augmentation."""
    return like.new_tensor([[FPS_ID, MOTION_BUCKET, NOISE_AUGMENTATION]]).repeat(batch, 1)


def check_photo(photo: Tensor, position: int) -> None:
    """UserError unless photo is [1,3,H,W] with sides in multiples of 64 and position is 0..8."""
    if photo.ndim != 4 or photo.shape[:2] != (1, 3) or photo.shape[2] % 64 or photo.shape[3] % 64:
        raise UserError(
            f"the reference takes one photo [1,3,H,W] with sides in multiples of 64, "
            f"got {list(photo.shape)}: resize it first"
        )
    if position not in range(FRAMES):
        raise UserError(f"position {position} is outside 0 (near) … {FRAMES - 1} (infinity)")


@dataclass(frozen=True)
class Places:
    """Where a reference lies: local folders in the diffusers layout, or Hub ids.

    Attributes:
        base: holds vae/, image_encoder/ and scheduler/.
        unet: what holds the UNet, and its folder there.
        name: the reference's.
    """

    base: str
    unet: tuple[str, str]
    name: str


def find_places(spec: str) -> Places:
    """The places that `spec` names, see `load_reference`; UserError when it names none."""
    if spec in ("learn2refocus", LEARN2REFOCUS):
        return Places(BASE, (LEARN2REFOCUS, LEARN2REFOCUS_UNET), "learn2refocus")
    root = str(DEFAULT_WEIGHTS) if spec == "default" else spec
    finetuned, plus, base = root.partition("+")
    if not plus or Path(root).is_dir():
        finetuned = base = root
    for place in (finetuned, base):
        hub_id = place.count("/") == 1 and not place.startswith((".", "/"))
        if not place or not (hub_id or Path(place).is_dir()):
            raise UserError(
                f"no reference at {place or spec}: name `default`, `learn2refocus`, a local folder "
                "in the diffusers layout, a Hub id such as owner/model, or the folders of a "
                "fine-tuned UNet and of its base, UNET_DIR+BASE_DIR"
            )
    return Places(base, (finetuned, _unet_folder(finetuned)), spec)


def _unet_folder(root: str) -> str:
    """Where below `root` the UNet lies: unet/, the last of checkpoint-*/unet/, or root itself."""
    if root == LEARN2REFOCUS:
        return LEARN2REFOCUS_UNET
    if (Path(root) / "unet").is_dir() or not Path(root).is_dir():
        return "unet"
    steps = [p.parent.name for p in Path(root).glob("checkpoint-*/unet") if p.is_dir()]
    if steps:
        return f"{max(steps, key=lambda name: (len(name), name))}/unet"
    return "" if (Path(root) / "config.json").is_file() else "unet"


def load_reference(spec: str = "default") -> ReferencePipeline:
    """Load a reference in fp32 evaluation mode.

    `spec` is `default` (shipped), `learn2refocus` (the published model), a local folder in the
    diffusers layout (unet/, vae/, image_encoder/, scheduler/), a Hub id of that layout, or
    UNET+BASE, two of these: a fine-tuned UNet (unet/, checkpoint-*/unet/ as Learn2Refocus has it,
    or the UNet's own folder) and what it was tuned from.
    Raises UserError for missing components, weights that are pickled or do not fit their config, or
    no network.
    """
    return assemble(find_places(spec), load_component)


def assemble(places: Places, load: Callable[[Any, str, str], Any]) -> ReferencePipeline:
    """The pipeline of four components, each from `load(class, root, folder)`; UserError when they
    do not fit each other."""
    root = places.base
    pipeline = ReferencePipeline(
        vae=load(_autoencoder_class(root), root, "vae"),
        unet=load(UNetSpatioTemporalConditionModel, *places.unet),
        image_encoder=load(CLIPVisionModelWithProjection, root, "image_encoder"),
        scheduler=load(EulerDiscreteScheduler, root, "scheduler"),
        name=places.name,
    )
    _check_fit(pipeline)
    return pipeline


def _autoencoder_class(root: str) -> Any:
    """The published class, or the compact one where the folder's config names it."""
    config = Path(root) / "vae" / "config.json"
    if config.is_file() and CompactAutoencoder.__name__ in config.read_text(encoding="utf-8"):
        return CompactAutoencoder
    return AutoencoderKLTemporalDecoder


def load_component(cls: Any, root: str, subfolder: str) -> Any:
    """One component, fp32; safetensors only, the fp16 variant where that is all there is."""
    folder = component_folder(root, subfolder)
    if cls is EulerDiscreteScheduler:
        return attempt(lambda: cls.from_pretrained(root, subfolder=subfolder), root, subfolder)
    clip = cls is CLIPVisionModelWithProjection
    stem = TRANSFORMERS_STEM if clip else DIFFUSERS_STEM
    options: dict[str, Any] = {
        "use_safetensors": True,
        "variant": find_weights(folder, stem).variant if folder else None,
        "dtype" if clip else "torch_dtype": torch.float32,
    }
    model, info = attempt(
        lambda: cls.from_pretrained(root, subfolder=subfolder, output_loading_info=True, **options),
        root,
        subfolder,
    )
    check_weights(info, place_of(root, subfolder))
    return model.eval().requires_grad_(False)


def component_folder(root: str, subfolder: str) -> Path | None:
    """A component's folder, None on the Hub; UserError when a local root has none."""
    folder = Path(root) / subfolder
    if not Path(root).is_dir():
        return None
    if not folder.is_dir():
        raise UserError(
            f"{root} has no {subfolder}/: a reference needs unet/, vae/, image_encoder/, scheduler/"
        )
    return folder


def place_of(root: str, subfolder: str) -> str:
    """A component in words."""
    return f"{subfolder} of {root}" if subfolder else root


def check_weights(info: dict[str, Any], where: str) -> None:
    """UserError when the files do not hold exactly the weights that the config asks for.

    The libraries only warn, and leave what is missing at random values.
    """
    wrong = {
        "lacks {} of the weights its config.json asks for": info["missing_keys"],
        "has {} weights its config.json does not ask for": [
            name for name in info["unexpected_keys"] if not name.endswith(BUFFER)
        ],
        "has {} weights of other shapes than its config.json asks for": info["mismatched_keys"],
    }
    for what, names in wrong.items():
        if names:
            first = min(name if isinstance(name, str) else name[0] for name in names)
            raise UserError(
                f"{where} {what.format(len(names))}, such as {first}: take weights and config.json "
                "from one model"
            )


def attempt(load: Callable[[], Any], root: str, subfolder: str) -> Any:
    """What a library's `load` returns, its warnings hushed and its errors one-line UserErrors."""
    try:
        with _without_warnings():
            return load()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else repr(error)
        way_out = (
            "check the folder"
            if Path(root).is_dir()
            else "check the network and the Hub id, or download it and name its folder"
        )
        raise UserError(f"cannot load {place_of(root, subfolder)} ({reason}): {way_out}") from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hush the libraries: what they warn of is an error here, see `check_weights`."""
    before = [(library, library.get_verbosity()) for library in (diffusers_log, transformers_log)]
    for library, _ in before:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in before:
            library.set_verbosity(verbosity)


def _check_fit(pipeline: ReferencePipeline) -> None:
    latent, unet = pipeline.vae.config.latent_channels, pipeline.unet.config
    wanted = 2 * latent + PLANES * pipeline.relative
    made = latent + QUARTERS * len(pipeline.vae.config.get("defocus_radii", ()))
    if (unet.in_channels, unet.out_channels) != (wanted, made):
        raise UserError(
            f"the UNet has {unet.in_channels} channels in and {unet.out_channels} out, but a VAE "
            f"with {latent} latent channels needs {wanted} and {made}: take both from one model"
        )
    width, cross = pipeline.image_encoder.config.projection_dim, unet.cross_attention_dim
    if cross != width:
        raise UserError(
            f"the image encoder makes {width} features, the UNet attends to {cross}: take both "
            "from one model"
        )
