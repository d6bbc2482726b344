"""Loading a reference: from the package, local folders in the diffusers layout, or the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    UNetSpatioTemporalConditionModel,
)
from diffusers.utils import logging as diffusers_log
from transformers import CLIPVisionModelWithProjection
from transformers.utils import logging as transformers_log

from pocketfocus.models.autoencoder import QUARTERS, CompactAutoencoder
from pocketfocus.models.checkpoints import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    by_preference,
    find_weights,
)
from pocketfocus.models.places import SAMPLING_FILE, Places, find_places, hub_place
from pocketfocus.models.reference import PLANES, ReferencePipeline
from pocketfocus.models.sampling import Sampling, own_sampling
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json

Loader = Callable[[Any, str, str, str | None], Any]
"""`load(class, root, folder, preferred variant)` makes a component."""
CONFIGS = "*config.json"  # what diffusers and transformers read themselves
BUFFER = "position_ids"  # a constant that older versions of transformers saved with the weights


def load_reference(spec: str = "default") -> ReferencePipeline:
    """Load a reference by its name (see `find_places`) in fp32 evaluation mode.

    Raises UserError for missing components, weights that are pickled or do not fit their config, or
    no network.
    """
    return assemble(find_places(spec), load_component)


def assemble(places: Places, load: Loader) -> ReferencePipeline:
    """Return the pipeline of four components; UserError when they do not fit each other, or make
    another number of frames than a focal stack has."""
    root = places.base
    pipeline = ReferencePipeline(
        vae=load(_autoencoder_class(root), root, "vae", places.variant),
        unet=load(UNetSpatioTemporalConditionModel, *places.unet, places.variant),
        image_encoder=load(CLIPVisionModelWithProjection, root, "image_encoder", None),
        scheduler=load(EulerDiscreteScheduler, root, "scheduler", None),
        name=places.name,
        few_steps=_stored_sampling(Path(places.unet[0]) / SAMPLING_FILE),
    )
    _check_fit(pipeline)
    _check_frames(pipeline, places)
    return pipeline


def default_sampling(spec: str) -> Sampling:
    """Return `load_reference(spec).sampling`, of which only small JSON files are read. A Hub id
    that is not on this disk is sampled as published."""
    places = find_places(spec)
    stored = _stored_sampling(Path(places.unet[0]) / SAMPLING_FILE)
    config = Path(places.base) / "vae" / "config.json"
    fields_there = read_config(config) if config.is_file() else {}
    return own_sampling(stored, bool(fields_there.get("relative_latents", False)))


def _stored_sampling(path: Path) -> Sampling | None:
    """Return what a consistency model's folder says, None of others; UserError for what is no
    sampling."""
    if not path.is_file():
        return None
    stored = read_json(path)
    text = "/".join(str(stored.get(field.name)) for field in fields(Sampling))
    try:
        return Sampling().changed(text)
    except UserError as error:
        raise UserError(f"{path} holds no sampling ({error}): distil the model anew") from error


def _autoencoder_class(root: str) -> Any:
    """Return the published class, or the compact one where the folder's config names it."""
    config = Path(root) / "vae" / "config.json"
    named = read_config(config).get("_class_name") if config.is_file() else None
    return (
        CompactAutoencoder if named == CompactAutoencoder.__name__ else AutoencoderKLTemporalDecoder
    )


def read_config(path: Path) -> dict[str, object]:
    """Read a config as diffusers and transformers do; UserError for one that they would misread.

    They stop at a byte-order mark, and take a JSON number for a model's name, to ask the Hub for.
    """
    try:
        config = json.loads(path.read_bytes().decode())
        if not isinstance(config, dict):
            raise TypeError(f"it holds {config!r:.40}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is no JSON object in plain UTF-8 ({error}): download it again, or save it "
            "without a byte-order mark"
        ) from error
    return config


def load_component(cls: Any, root: str, subfolder: str, preferred: str | None = None) -> Any:
    """Load one component, fp32; safetensors only, the preferred variant or else what there is."""
    folder = component_folder(root, subfolder)
    name, revision = hub_place(root)
    if cls is EulerDiscreteScheduler:
        scheduler = partial(cls.from_pretrained, name, subfolder=subfolder, revision=revision)
        return attempt(scheduler, root, subfolder)
    clip = cls is CLIPVisionModelWithProjection
    if folder is None:
        variants = by_preference(preferred)
    else:
        stem = TRANSFORMERS_STEM if clip else DIFFUSERS_STEM
        variants = (find_weights(folder, stem, preferred).variant,)
    options: dict[str, Any] = {
        "use_safetensors": True,
        "revision": revision,
        "output_loading_info": True,
        "dtype" if clip else "torch_dtype": torch.float32,
    }
    errors: list[UserError] = []
    for variant in variants:  # of a Hub's, or its cache's, only trying tells which are there
        load = partial(cls.from_pretrained, name, subfolder=subfolder, variant=variant, **options)
        try:
            model, info = attempt(load, root, subfolder)
        except UserError as error:
            errors.append(error)
            continue
        check_weights(info, place_of(root, subfolder))
        return model.eval().requires_grad_(False)
    raise errors[0]


def component_folder(root: str, subfolder: str) -> Path | None:
    """Return a component's folder, None on the Hub; UserError when a local root has none, or one
    whose config is no JSON."""
    folder = Path(root) / subfolder
    if not Path(root).is_dir():
        return None
    if not folder.is_dir():
        raise UserError(
            f"{root} has no {subfolder}/: a reference needs unet/, vae/, image_encoder/, scheduler/"
        )
    for path in folder.glob(CONFIGS):
        read_config(path)
    return folder


def place_of(root: str, subfolder: str) -> str:
    """Name a component in words."""
    return f"{subfolder} of {root}" if subfolder else root


def check_weights(info: dict[str, Any], where: str) -> None:
    """Raise UserError when the files do not hold exactly the weights that the config asks for.

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
    """Call a library's `load`, its warnings hushed and its errors made one-line UserErrors."""
    try:
        with _without_warnings():
            return load()
    except Exception as error:  # they raise whatever they meet, of configs with wrong types too
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
    radii = pipeline.vae.config.get("defocus_radii", ())
    if not isinstance(radii, list | tuple) or not all(isinstance(r, int | float) for r in radii):
        raise UserError(f"defocus_radii of {pipeline.name} is {radii!r:.40}, no list of numbers")
    made = latent + QUARTERS * len(radii)
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


def _check_frames(pipeline: ReferencePipeline, places: Places) -> None:
    """Raise UserError for a UNet whose config tells of another number of frames.

    One that was tuned is exempt: Learn2Refocus's config is still that of the video model.
    """
    frames = pipeline.unet.config.num_frames
    if frames != FRAMES and not places.tuned:
        raise UserError(
            f"a focal stack has {FRAMES} frames, {places.name} makes {frames} (num_frames in its "
            f"unet/config.json): name a refocusing model, or write {FRAMES} there if it was "
            "fine-tuned to as many"
        )
