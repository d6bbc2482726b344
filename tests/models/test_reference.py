"""The reference against diffusers' own pipeline and scheduler."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file, save_file

from pocketfocus.distill.reference.phases import save_reference
from pocketfocus.distill.reference.presets import SMALLEST, build_reference, svd_scheduler
from pocketfocus.models import loading as module
from pocketfocus.models.loading import default_sampling, load_reference
from pocketfocus.models.reference import ReferencePipeline, place_latent, spread_latent
from pocketfocus.models.sampling import Sampling
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError


@pytest.fixture(scope="module")
def pipeline() -> ReferencePipeline:
    torch.manual_seed(0)
    made = build_reference(replace(SMALLEST, relative_latents=False))
    for part in (made.vae, made.unet, made.image_encoder):
        part.eval().requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def folder(pipeline: ReferencePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference")
    save_reference(pipeline, path, {})
    return path


def photo(size: int = 64) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def svd(pipeline: ReferencePipeline) -> StableVideoDiffusionPipeline:
    return StableVideoDiffusionPipeline(
        vae=pipeline.vae,
        image_encoder=pipeline.image_encoder,
        unet=pipeline.unet,
        scheduler=EulerDiscreteScheduler.from_config(pipeline.scheduler.config),
        feature_extractor=None,
    )


@pytest.mark.parametrize("position", range(FRAMES))
def test_sampler_is_diffusers_svd_with_the_latent_at_one_frame(
    pipeline: ReferencePipeline, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drive StableVideoDiffusionPipeline itself, with only the image latents and the embedding
    replaced by Learn2Refocus's, and compare the sampled latents."""
    image, steps = photo(), 3
    noise = randn_tensor(pipeline.latent_shape(image), generator=torch.Generator().manual_seed(3))
    condition = place_latent(pipeline.encode(image), torch.tensor([position]))
    embedding = pipeline.embed(image)
    theirs = svd(pipeline)
    pair = torch.cat([torch.zeros_like(condition), condition])

    class Placed(torch.Tensor):
        """Image latents that are already one a frame: SVD's repetition leaves them alone."""

        def unsqueeze(self, _: int) -> Placed:
            return self

        def repeat(self, *_: object) -> torch.Tensor:
            return pair

        def to(self, *_: object, **__: object) -> Placed:
            return self

    monkeypatch.setattr(
        theirs, "_encode_image", lambda *_: torch.cat([torch.zeros_like(embedding), embedding])
    )
    monkeypatch.setattr(
        theirs, "_encode_vae_image", lambda *_, **__: condition[0].as_subclass(Placed)
    )
    expected = theirs(
        image=(image + 1) / 2,
        height=64,
        width=64,
        num_frames=FRAMES,
        num_inference_steps=steps,
        min_guidance_scale=1.5,
        max_guidance_scale=1.5,
        fps=7,
        motion_bucket_id=0,
        noise_aug_strength=0.0,
        latents=noise * theirs.scheduler.init_noise_sigma
        if _scales_itself(theirs)
        else noise.clone(),
        output_type="latent",
    ).frames
    ours = pipeline.sample(image, position, noise, Sampling(steps))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def _scales_itself(pipe: StableVideoDiffusionPipeline) -> bool:
    """Whether `prepare_latents` leaves given latents unscaled, so that the caller has to."""
    given = torch.ones(1, FRAMES, 4, 8, 8)
    prepared = pipe.prepare_latents(
        1, FRAMES, 8, 64, 64, torch.float32, torch.device("cpu"), None, given
    )
    return bool(torch.equal(prepared, given))


def test_scheduler_is_svds() -> None:
    scheduler = svd_scheduler()
    scheduler.set_timesteps(25)
    sigmas = scheduler.sigmas
    assert sigmas[0] == pytest.approx(700.0) and sigmas[24] == pytest.approx(0.002)
    ramp = torch.linspace(0, 1, 25)
    karras = (700 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 700 ** (1 / 7))) ** 7
    torch.testing.assert_close(sigmas[:25], karras, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scheduler.timesteps, 0.25 * karras.log(), rtol=1e-3, atol=1e-4)


def test_decoding_in_chunks_of_eight(pipeline: ReferencePipeline) -> None:
    latents = torch.randn(1, FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    unscaled = latents[0] / pipeline.vae.config.scaling_factor
    first = pipeline.vae.decode(unscaled[:8], num_frames=8).sample
    last = pipeline.vae.decode(unscaled[8:], num_frames=1).sample
    torch.testing.assert_close(pipeline.decode(latents), torch.cat([first, last]))


def test_a_relative_reference_sees_the_photo_and_its_distance_at_every_frame() -> None:
    latents = torch.randn(2, 4, 3, 5)
    condition = spread_latent(latents, torch.tensor([0, 6]))
    assert condition.shape == (2, 9, 6, 3, 5)
    for frame in range(9):
        assert torch.equal(condition[:, frame, :4], latents)
    torch.testing.assert_close(condition[0, :, 4, 2, 3], torch.arange(9) / 8)
    torch.testing.assert_close(condition[1, :, 4, 0, 0], (torch.arange(9) - 6) / 8)
    assert (condition[0, :, 5] == -1).all() and (condition[1, :, 5] == 0.5).all()


def test_condition_is_the_unscaled_mode_at_its_frame(pipeline: ReferencePipeline) -> None:
    latent = pipeline.encode(photo())
    condition = place_latent(latent, torch.tensor([3]))
    assert torch.equal(condition[0, 3], latent[0])
    assert condition[0, [0, 1, 2, 4, 5, 6, 7, 8]].abs().max() == 0
    torch.testing.assert_close(latent, pipeline.vae.encode(photo()).latent_dist.mean)


def test_guidance_one_needs_no_unconditional_pass(pipeline: ReferencePipeline) -> None:
    calls = 0
    original = pipeline.unet.forward

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    pipeline.unet.forward = counted
    try:
        pipeline(photo(), 4, Sampling(2, 1.0))
        assert calls == 2
        pipeline(photo(), 4, Sampling(2))
        assert calls == 6
    finally:
        pipeline.unet.forward = original


def test_loading_returns_what_was_saved(pipeline: ReferencePipeline, folder: Path) -> None:
    loaded = load_reference(str(folder))
    assert loaded.unet.dtype == torch.float32
    torch.testing.assert_close(
        loaded.sample(photo(), 2, torch.zeros(loaded.latent_shape(photo())), Sampling(1)),
        pipeline.sample(photo(), 2, torch.zeros(pipeline.latent_shape(photo())), Sampling(1)),
        rtol=2e-2,
        atol=2e-2,
    )


def test_the_shipped_reference_loads_and_refocuses() -> None:
    made = load_reference()(photo(), 4, Sampling(1))
    assert made.shape == (FRAMES, 3, 64, 64)
    assert made.isfinite().all() and made.abs().max() <= 1


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder", "scheduler"])
def test_a_missing_component_is_named(folder: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(folder, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / part)
    with pytest.raises(UserError, match=part):
        load_reference(str(tmp_path / "r"))


@pytest.mark.parametrize(
    "cls", [UNetSpatioTemporalConditionModel, EulerDiscreteScheduler], ids=["weights", "a config"]
)
@pytest.mark.parametrize(("root", "revision"), [("owner/model#v1", "v1"), ("owner/model", None)])
def test_the_hub_is_asked_for_a_revision(
    cls: Any, root: str, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def from_pretrained(name: str, *, revision: str | None, **_: object) -> None:
        asked.append((name, revision))
        raise OSError("no network")

    monkeypatch.setattr(cls, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match="no network"):
        module.load_component(cls, root, "part")
    assert asked and set(asked) == {("owner/model", revision)}


def test_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "r")
    weights = next((tmp_path / "r" / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="pickled"):
        load_reference(str(tmp_path / "r"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> str:
    """Apply a change to the tensors of a component's folder; returns the folder's reference."""
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return str(folder.parent)


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_the_config_are_refused(
    folder: Path, tmp_path: Path, part: str, change: str
) -> None:
    """The libraries would warn, and leave random values."""
    shutil.copytree(folder, tmp_path / "r")
    changes: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        "missing": lambda t: t.popitem(),
        "unexpected": lambda t: t.update(extra=torch.zeros(2)),
        "shape": lambda t: t.update({max(t): torch.zeros(3, 5, 7)}),
    }
    with pytest.raises(UserError, match=part):
        load_reference(change_weights(tmp_path / "r" / part, changes[change]))


def test_a_buffer_that_older_files_hold_is_no_harm(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "r")
    name = "vision_model.embeddings.position_ids"
    encoder = tmp_path / "r" / "image_encoder"
    spec = change_weights(encoder, lambda t: t.update({name: torch.arange(50)[None]}))
    assert load_reference(spec).image_encoder


def test_a_truncated_checkpoint_is_one_line(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "r")
    weights = next((tmp_path / "r" / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="vae"):
        load_reference(str(tmp_path / "r"))


def test_unet_and_autoencoder_must_fit(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "r")
    config = tmp_path / "r" / "unet" / "config.json"
    content = json.loads(config.read_text())
    pipeline = load_reference(str(folder))
    pipeline.unet = type(pipeline.unet)(**{**pipeline.unet.config, "in_channels": 6})
    with pytest.raises(UserError, match="latent channels"):
        module._check_fit(pipeline)
    assert content["in_channels"] == 8


@pytest.mark.parametrize("spec", ["nowhere", "./nowhere/at/all"])
def test_an_unknown_reference_is_named(spec: str) -> None:
    with pytest.raises(UserError, match=spec):
        load_reference(spec)


@pytest.mark.parametrize("shape", [(1, 3, 64, 60), (3, 64, 64), (2, 3, 64, 64)])
def test_a_photo_of_another_shape_is_refused(
    pipeline: ReferencePipeline, shape: tuple[int, ...]
) -> None:
    with pytest.raises(UserError, match="multiples of 64"):
        pipeline(torch.zeros(shape), 0)


@pytest.mark.parametrize(
    "name", ["unet/config.json", "vae/config.json", "image_encoder/config.json", "scheduler"]
)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": 1}'.encode("utf-8-sig"), "byte-order mark"),
        ('{"a": 1}'.encode("utf-16"), "byte-order mark"),
        (b"3", "it holds 3"),
        (b"", "download it again"),
        (b"[" * 10**5, "download it again"),
    ],
    ids=["marked", "utf16", "number", "empty", "deep"],
)
def test_a_config_that_the_libraries_would_misread_is_one_line_that_names_it(
    small_reference: Path, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    """A number would be the name of a model, which they would ask the Hub for."""
    shutil.copytree(small_reference, tmp_path, dirs_exist_ok=True)
    path = tmp_path / (f"{name}/scheduler_config.json" if name == "scheduler" else name)
    path.write_bytes(content)
    readers: list[Callable[[str], object]] = [load_reference]
    for read in readers + [default_sampling] * name.startswith("vae"):
        with pytest.raises(UserError) as caught:
            read(str(tmp_path))
        assert str(path) in str(caught.value) and said in str(caught.value)
        assert "\n" not in str(caught.value)
