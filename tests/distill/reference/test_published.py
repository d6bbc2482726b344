"""The paper's recipe against its published code, written out with torch and diffusers alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as theirs
from safetensors.torch import load_file
from torch import Tensor

from pocketfocus.cli import main
from pocketfocus.distill.reference import denoiser, published, training
from pocketfocus.distill.reference.finetune import choose_trained, fine_tune, load_start
from pocketfocus.distill.reference.phases import Phase
from pocketfocus.distill.reference.published import (
    Posteriors,
    PublishedBatch,
    encode_posterior,
    published_losses,
    published_sample,
)
from pocketfocus.distill.reference.recipes import OWN, PAPER
from pocketfocus.distill.reference.training import Training
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.photos.images import from_uint8
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from tests.published import save_svd, small_svd

HEIGHT, WIDTH = 128, 64


@pytest.fixture(scope="module")
def stacks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, FRAMES, 3, HEIGHT, WIDTH), np.uint8)


@pytest.fixture(scope="module")
def svd() -> StableVideoDiffusionPipeline:
    made = small_svd()
    for part in (made.vae, made.unet, made.image_encoder):
        part.eval().requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def ours(svd: StableVideoDiffusionPipeline) -> ReferencePipeline:
    return ReferencePipeline(svd.vae, svd.unet, svd.image_encoder, svd.scheduler)


@pytest.fixture(scope="module")
def posteriors(ours: ReferencePipeline, stacks: np.ndarray) -> Posteriors:
    return Posteriors(stacks, np.stack([encode_posterior(ours, stack) for stack in stacks]))


def drawn(ours: ReferencePipeline, posteriors: Posteriors, seed: int) -> PublishedBatch:
    return published_sample(ours, posteriors, 64, torch.Generator().manual_seed(seed))


def published_loss(svd: StableVideoDiffusionPipeline, batch: PublishedBatch) -> Tensor:
    """What the published loop computes of a stack, from the same random numbers."""
    sigma = batch.sigma[:, None, None, None, None]
    noisy = batch.clean + batch.noise * sigma
    posterior = svd.vae.encode(batch.grainy).latent_dist
    own = posterior.mean + posterior.std * batch.jitter  # what `sample` does
    condition = torch.zeros_like(batch.clean)
    condition[0, int(batch.positions)] = own[0] * batch.keep_latent
    small = (theirs._resize_with_antialiasing(batch.photos, (224, 224)) + 1) / 2
    embedding = svd._encode_image(small, torch.device("cpu"), 1, False) * batch.keep_embedding
    velocity = svd.unet(
        torch.cat([noisy / (sigma**2 + 1) ** 0.5, condition], dim=2),
        0.25 * batch.sigma.log(),
        embedding,
        added_time_ids=torch.tensor([[7.0, 0.0, float(batch.level)]]),
    ).sample
    denoised = velocity * (-sigma / (sigma**2 + 1) ** 0.5) + noisy / (sigma**2 + 1)
    weight = (1 + sigma**2) * sigma**-2.0
    return (weight * (denoised - batch.clean) ** 2).mean()


@pytest.mark.parametrize("kept", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_the_loss_is_the_published_codes(
    svd: StableVideoDiffusionPipeline,
    ours: ReferencePipeline,
    posteriors: Posteriors,
    kept: tuple[float, float],
) -> None:
    batch = drawn(ours, posteriors, 1)
    embedding, latent = (torch.tensor([value]) for value in kept)
    batch = batch._replace(keep_embedding=embedding, keep_latent=latent)
    made = published_losses(ours, batch)["loss"]
    torch.testing.assert_close(made, published_loss(svd, batch), rtol=1e-4, atol=1e-5)


def test_samples_are_whole_frames_with_the_published_noise(
    ours: ReferencePipeline, posteriors: Posteriors, stacks: np.ndarray
) -> None:
    batches = [drawn(ours, posteriors, seed) for seed in range(60)]
    for batch in batches:
        (frames,) = (
            stack
            for stack in from_uint8(stacks, planar=True)
            if torch.equal(stack[int(batch.positions)], batch.photos[0])
        )
        assert frames.shape[-2:] == (HEIGHT, WIDTH)
    assert {int(batch.positions) for batch in batches} == set(range(FRAMES))
    levels = torch.cat([batch.level for batch in batches]).log()
    assert float(levels.mean()) == pytest.approx(-3.0, abs=0.3)
    grains = torch.cat([(b.grainy - b.photos).flatten() / b.level for b in batches])
    assert float(grains.std()) == pytest.approx(1.0, abs=0.01)


def test_latents_are_drawn_from_the_posterior(
    svd: StableVideoDiffusionPipeline, posteriors: Posteriors, stacks: np.ndarray
) -> None:
    """Each time anew, about the mean and as wide as diffusers' own distribution says."""
    wanted = svd.vae.encode(from_uint8(stacks[0], planar=True)).latent_dist
    single = Posteriors(stacks[:1], posteriors.moments[:1])
    many = [single.drawn(torch.Generator().manual_seed(seed))[1][0] for seed in range(200)]
    found = (torch.stack(many) - wanted.mean) / wanted.std
    assert float(found.mean().abs()) < 0.02 and float(found.std()) == pytest.approx(1.0, abs=0.02)


def test_steps_are_plain_adamw_at_a_constant_rate(
    svd: StableVideoDiffusionPipeline,
    stacks: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three steps, replayed by torch alone: neither warm-up, decay, clipping nor an average."""
    save_svd(tmp_path / "svd")
    monkeypatch.setattr(denoiser, "PICTURE_STEPS", 1)
    seen: list[PublishedBatch] = []
    losses = published.published_losses

    def kept(pipeline: ReferencePipeline, batch: PublishedBatch) -> dict[str, Tensor]:
        seen.append(batch)
        return losses(pipeline, batch)

    monkeypatch.setattr(published, "published_losses", kept)
    options = Training(steps=3, init="any", recipe="paper", learning_rate=1e-3)
    phase = Phase(options.schedule(), (Crops(1.0, 1, min(HEIGHT, WIDTH)),))
    out, start = tmp_path / "out", str(tmp_path / "svd")
    fine_tune(load_start(start), stacks, out, phase, recipe=PAPER)

    again = load_start(start)
    choose_trained(again.unet, "temporal")
    trained = {n: p for n, p in again.unet.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    adamw = torch.optim.AdamW(
        trained.values(), lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-7
    )
    assert len(seen) == 3
    for batch in seen:
        losses(again, batch)["loss"].backward()
        adamw.step()
        adamw.zero_grad()
    stored = load_file(out / "finetune" / "checkpoint.safetensors")
    moved, wanted = (
        torch.cat([(made[name].detach() - before[name]).flatten() for name in trained])
        for made in ({n: stored[f"model.{n}"] for n in trained}, trained)
    )
    assert float((moved - wanted).norm() / wanted.norm()) < 1e-5
    assert all(torch.equal(stored[f"ema.{n}"], stored[f"model.{n}"]) for n in trained)
    facts = json.loads((out / "training.json").read_text())
    assert facts["recipe"] == "paper"


def test_the_rate_is_for_every_sample_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(**options: object) -> float:
        return Training(steps=9, init="svd", **options).schedule().rate(0, 0.0)  # type: ignore[arg-type]

    assert rate(recipe="paper") == pytest.approx(1e-5)
    assert rate(recipe="paper", batch=2, accumulate=3) == pytest.approx(6e-5)
    monkeypatch.setattr(training, "process_state", lambda: type("", (), {"num_processes": 4}))
    assert rate(recipe="paper") == pytest.approx(4e-5)
    late = Training(steps=9, init="svd", recipe="paper").schedule()
    assert late.rate(8, 1.0) == late.rate(0, 0.0)
    own = Training(steps=9, init="svd", batch=2).schedule()
    assert own.learning_rate == 1e-5 and replace(own, steps=1, minutes=1.0) == Schedule(
        1.0, 1, learning_rate=1e-5
    ), "ours is as it was"
    assert Training().sides == (256, 256) and Training(recipe="paper").sides == (896, 640)


def test_bad_requests_are_one_line(
    ours: ReferencePipeline, stacks: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phase, out = Phase(Schedule(steps=1), (Crops(1.0, 1, 64),)), tmp_path / "out"
    with pytest.raises(UserError, match=r"multiples of 64, not 100"):
        fine_tune(ours, stacks[..., :100, :], out, phase, recipe=PAPER)
    words = ["train-reference", "--out", str(out), "--init", "default"]
    for more, said in (
        (["--recipe", "their"], "unknown recipe 'their': choose from pocketfocus, paper"),
        (["--recipe", "paper", "--train", "all"], "leave out --train"),
        (["--recipe", "paper", "--size", "640x900"], "multiples of 64, not 900"),
        (["--recipe", "pocketfocus", "--size", "640x896"], "is no square"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    assert main(["train-reference", "--out", str(out), "--recipe", "paper"]) == 2
    assert "name it with --init" in capsys.readouterr().err
    assert not out.exists() and OWN.name == "pocketfocus"


def test_the_small_reference_is_not_of_the_published_form(
    stacks: np.ndarray, tmp_path: Path
) -> None:
    phase = Phase(Schedule(steps=1), (Crops(1.0, 1, 64),))
    with pytest.raises(UserError, match="differences to its photo: fine-tune it by pocketfocus"):
        fine_tune(load_start("default"), stacks, tmp_path / "out", phase, recipe=PAPER)
    assert not (tmp_path / "out").exists()


def test_muon_is_for_the_small_denoiser_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, str] = {}

    def phases(stacks: object, out: object, autoencoder: Phase, denoiser: Phase) -> None:
        used.update(vae=autoencoder.schedule.optimizer, unet=denoiser.schedule.optimizer)

    monkeypatch.setattr(training, "train_reference", phases)
    monkeypatch.setattr(training, "cache_sources", lambda *_: SimpleNamespace(pixels=None))
    training.run_training(Training(steps=100), tmp_path)
    assert used == {"vae": "adamw", "unet": "muon"}
    assert Training(steps=100, init="svd").schedule().optimizer == "adamw"
