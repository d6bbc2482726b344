"""Consistency distillation: its levels, its steps, and the reference that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketfocus.distill.reference.denoiser import estimate
from pocketfocus.distill.student.consistency import LEVELS, Consistency
from pocketfocus.distill.student.options import Distillation
from pocketfocus.distill.student.samples import true_batch
from pocketfocus.distill.student.stage import distill_run
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import ReferencePipeline, karras_sigmas
from pocketfocus.models.sampling import PUBLISHED, Sampling
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json
from tests.distill.conftest import cached
from tests.published import VIDEO_FRAMES, save_svd, save_tuned


def test_the_levels_of_few_steps_are_levels_of_training(
    either: ReferencePipeline,
) -> None:
    config = either.scheduler.config
    all_levels = karras_sigmas(config, torch.linspace(0, 1, LEVELS + 1))
    assert all_levels[0] == pytest.approx(700) and all_levels[-1] == pytest.approx(0.002, rel=1e-2)
    for steps in (1, 2, 4):
        few = karras_sigmas(config, torch.arange(steps) / steps)
        torch.testing.assert_close(few, all_levels[:-1][:: LEVELS // steps])


def test_the_guided_step_is_the_pipelines_own(either: ReferencePipeline) -> None:
    """One step of two of the published sampler, from the same noise, ends at the same latents."""
    torch.manual_seed(1)
    photo, position = torch.rand(1, 3, 64, 64) * 2 - 1, 3
    trained = Consistency(either).eval()
    noise = torch.randn(either.latent_shape(photo))
    high = torch.tensor([700.0])
    with torch.no_grad():
        given, _ = trained.encoded(
            photo, torch.tensor([position]), photo[:, None].expand(1, 9, -1, -1, -1)
        )
        start = noise * (high**2 + 1).sqrt()
        ended = trained.guided_step(start, high, torch.zeros(1), given)
        expected = either.sample(photo, position, noise, Sampling(1, PUBLISHED.guidance))
        if either.relative:
            expected = expected - either.vae.config.scaling_factor * either.encode(photo)[:, None]
    torch.testing.assert_close(ended, expected, atol=2e-4, rtol=1e-3)


def test_the_loss_is_between_neighbouring_levels_and_only_the_upper_learns(
    either: ReferencePipeline, noise: np.ndarray
) -> None:
    trained = Consistency(either)
    trained.average = {
        n: p.detach().clone() for n, p in trained.named_parameters() if p.requires_grad
    }
    generator = torch.Generator().manual_seed(0)
    batch = true_batch([cached(noise)], 1, 64, generator).floats()
    level, unit = trained.noise(batch.images, generator)
    found = trained.losses(batch, level, unit)
    found["loss"].backward()
    learning = [n for n, p in trained.named_parameters() if p.grad is not None]
    assert learning and all(n.startswith("unet.") for n in learning)
    given, clean = trained.encoded(batch.photos, batch.positions, batch.stacks)
    high, low = trained.sigmas[level], trained.sigmas[level + 1]
    noisy = clean + high * unit
    nearer = trained.guided_step(noisy, high, low, given)
    error = estimate(trained.student, noisy, high, given) - estimate(
        trained.student, nearer, low, given
    )
    squared = (error.square() * trained.importance.reshape(-1, 1, 1)).mean()
    assert float(found["mse"]) == pytest.approx(float(squared.detach()), rel=1e-4)


@pytest.mark.usefixtures("short_trajectories")
def test_consistency_makes_a_reference_that_draws_in_few_steps(
    reference: ReferencePipeline, options: Callable[..., Distillation], tmp_path: Path
) -> None:
    distill_run(tmp_path, options(method="consistency", steps=2))
    made, summary = (
        load_reference(str(tmp_path / "reference")),
        read_json(tmp_path / "distill.json"),
    )
    assert summary["kept"] == "trained" and summary["steps"] == 2
    assert made.sampling == Sampling(4, 1.0, 1.0)
    weights, before = made.unet.state_dict(), reference.unet.state_dict()
    assert any(not torch.equal(weights[name], before[name]) for name in before)
    assert all(
        torch.equal(v, reference.vae.state_dict()[n]) for n, v in made.vae.state_dict().items()
    )
    photo = torch.rand(1, 3, 64, 64) * 2 - 1
    for steps in (None, Sampling(1, 1.0), Sampling(2, 1.0)):
        assert made(photo, 4, steps).isfinite().all()
    again = options(method="consistency", reference=str(tmp_path / "reference"))
    with pytest.raises(UserError, match="distilled to 4 steps already"):
        distill_run(tmp_path / "again", again)
    (tmp_path / "reference" / "sampling.json").write_text('{"schema_version": 1, "steps": 0}')
    with pytest.raises(UserError, match="holds no sampling"):
        load_reference(str(tmp_path / "reference"))


@pytest.mark.usefixtures("short_trajectories")
def test_what_comes_of_a_tuned_reference_of_a_video_models_config_is_loaded_again(
    options: Callable[..., Distillation], tmp_path: Path
) -> None:
    """Learn2Refocus's UNet makes nine frames, its config still says 14."""
    save_svd(tmp_path / "svd")
    save_tuned(tmp_path / "tuned")
    tuned = f"{tmp_path / 'tuned'}+{tmp_path / 'svd'}"
    assert load_reference(tuned).unet.config.num_frames == VIDEO_FRAMES
    out = tmp_path / "out"
    distill_run(out, options(method="consistency", reference=tuned, steps=1, max_teacher_stacks=1))
    made = load_reference(str(out / "reference"))
    assert made(torch.zeros(1, 3, 64, 64), 4, Sampling(1, 1.0)).shape == (9, 3, 64, 64)
