"""The distillation methods: their losses against formulas, their results, resume and refusals."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.distill.student import regression, stage
from pocketfocus.distill.student.adversarial import Adversarial, pseudo_huber
from pocketfocus.distill.student.consistency import LEVELS, Consistency, estimate
from pocketfocus.distill.student.stage import Distillation, distill_run
from pocketfocus.distill.student.teacher_stacks import load_target, true_batch
from pocketfocus.distill.train import edm
from pocketfocus.distill.train.checkpoint import read_counters
from pocketfocus.distill.train.crops import Crops
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import PUBLISHED, ReferencePipeline, Sampling, karras_sigmas
from pocketfocus.models.student import build_student, load_student
from pocketfocus.run.errors import UserError

KEEPS_PUBLISHED = replace(SMALLEST, relative_latents=False)  # the published formulation, small


@pytest.fixture(scope="module", params=[SMALLEST, KEEPS_PUBLISHED], ids=["relative", "published"])
def teacher(request: pytest.FixtureRequest) -> ReferencePipeline:
    torch.manual_seed(0)
    return build_reference(request.param)


@pytest.fixture(scope="module")
def stacks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (2, 9, 3, 64, 64), np.uint8)


def settings(**changes: Any) -> Distillation:
    steps = {"minutes": float("inf"), "steps": 4, "max_targets": 2}
    return Distillation(**{**steps, "crops": (Crops(1.0, 1, 64),), **changes})


# adversarial


def test_each_term_of_the_gan_trains_its_own_side(
    teacher: ReferencePipeline, small_student: Path, stacks: np.ndarray
) -> None:
    learner = Adversarial(teacher, load_student(small_student))
    photos, positions, true = true_batch(stacks, 2, 64, torch.Generator().manual_seed(0))
    made = learner.made(photos, positions, true)
    fool, judge = learner.judged(made, photos, positions, true)
    student, heads = (list(part.parameters()) for part in (learner.student, learner.heads))
    for term, other in ((fool, heads), (judge, student)):
        found = torch.autograd.grad(term, other, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in found)
    fools = torch.autograd.grad(fool, student, retain_graph=True, allow_unused=True)
    assert sum(float(g.abs().sum()) for g in fools if g is not None) > 0
    assert all(g is not None for g in torch.autograd.grad(judge, heads))
    assert not any(p.requires_grad for p in learner.vae.parameters())


def test_hinge_of_equal_stacks_is_at_least_two(
    teacher: ReferencePipeline, small_student: Path, stacks: np.ndarray
) -> None:
    """relu(1 - x) + relu(1 + x) >= 2: nothing tells one from the other."""
    learner = Adversarial(teacher, load_student(small_student))
    photos, positions, true = true_batch(stacks, 1, 64, torch.Generator().manual_seed(0))
    _, judge = learner.judged(true, photos, positions, true)
    assert float(judge.detach()) >= 2 - 1e-5


def test_pseudo_huber_is_square_near_zero_and_size_far_off() -> None:
    assert float(pseudo_huber(torch.tensor(1e-2), 0.1)) == pytest.approx(1e-4 / 0.2, rel=1e-2)
    assert float(pseudo_huber(torch.tensor(100.0), 0.1)) == pytest.approx(99.9, rel=1e-3)


# consistency


def test_the_levels_of_few_steps_are_levels_of_training(teacher: ReferencePipeline) -> None:
    config = teacher.scheduler.config
    all_levels = karras_sigmas(config, torch.linspace(0, 1, LEVELS + 1))
    assert all_levels[0] == pytest.approx(700) and all_levels[-1] == pytest.approx(0.002, rel=1e-2)
    for steps in (1, 2, 4):
        few = karras_sigmas(config, torch.arange(steps) / steps)
        torch.testing.assert_close(few, all_levels[:-1][:: LEVELS // steps])


def test_the_guided_step_is_the_pipelines_own(teacher: ReferencePipeline) -> None:
    """One step of two of the published sampler, from the same noise, ends at the same latents."""
    torch.manual_seed(1)
    photo, position = torch.rand(1, 3, 64, 64) * 2 - 1, 3
    learner = Consistency(teacher).eval()
    noise = torch.randn(teacher.latent_shape(photo))
    high = torch.tensor([700.0])
    with torch.no_grad():
        given, _ = learner.encoded(
            photo, torch.tensor([position]), photo[:, None].expand(1, 9, -1, -1, -1)
        )
        start = noise * (high**2 + 1).sqrt()
        ended = learner.guided_step(start, high, torch.zeros(1), given)
        expected = teacher.sample(photo, position, noise, Sampling(1, PUBLISHED.guidance))
        if teacher.relative:
            expected = expected - teacher.vae.config.scaling_factor * teacher.encode(photo)[:, None]
    torch.testing.assert_close(ended, expected, atol=2e-4, rtol=1e-3)


def test_the_loss_is_between_neighbouring_levels_and_only_the_upper_learns(
    teacher: ReferencePipeline, stacks: np.ndarray
) -> None:
    learner = Consistency(teacher)
    learner.average = {
        n: p.detach().clone() for n, p in learner.named_parameters() if p.requires_grad
    }
    generator = torch.Generator().manual_seed(0)
    photos, positions, true = true_batch(stacks, 1, 64, generator)
    level, unit = learner.noise(true, generator)
    found = learner.losses(photos, positions, true, level, unit)
    found["loss"].backward()
    learning = [n for n, p in learner.named_parameters() if p.grad is not None]
    assert learning and all(n.startswith("unet.") for n in learning)
    given, clean = learner.encoded(photos, positions, true)
    high, low = learner.sigmas[level], learner.sigmas[level + 1]
    noisy = clean + high * unit
    nearer = learner.guided_step(noisy, high, low, given)
    error = estimate(learner.student, noisy, high, given) - estimate(
        learner.student, nearer, low, given
    )
    squared = (error.square() * learner.importance.reshape(-1, 1, 1)).mean()
    assert float(found["mse"]) == pytest.approx(float(squared.detach()), rel=1e-4)


def test_estimates_without_noise_are_what_was_given(teacher: ReferencePipeline) -> None:
    noisy = torch.randn(1, 9, 4, 8, 8)
    made = edm.denoised(torch.randn_like(noisy), noisy, torch.tensor([1e-6]))
    torch.testing.assert_close(made, noisy, atol=1e-5, rtol=0)


def test_consistency_makes_a_reference_that_draws_in_few_steps(
    small_reference: Path, stacks: np.ndarray, tmp_path: Path
) -> None:
    summary = distill_run(
        tmp_path,
        str(small_reference),
        stacks=stacks,
        settings=settings(method="consistency", steps=2),
    )
    made = load_reference(str(tmp_path / "reference"))
    assert summary["kept"] == "trained" and summary["steps"] == 2
    assert made.sampling == Sampling(4, 1.0, 1.0)
    teacher = load_reference(str(small_reference))
    weights, before = made.unet.state_dict(), teacher.unet.state_dict()
    assert any(not torch.equal(weights[name], before[name]) for name in before)
    assert all(
        torch.equal(v, teacher.vae.state_dict()[n]) for n, v in made.vae.state_dict().items()
    )
    photo = torch.rand(1, 3, 64, 64) * 2 - 1
    for steps in (None, Sampling(1, 1.0), Sampling(2, 1.0)):
        assert made(photo, 4, steps).isfinite().all()
    with pytest.raises(UserError, match="distilled to 4 steps already"):
        distill_run(
            tmp_path / "again",
            str(tmp_path / "reference"),
            stacks=stacks,
            settings=settings(method="consistency"),
        )
    (tmp_path / "reference" / "sampling.json").write_text('{"schema_version": 1, "steps": 0}')
    with pytest.raises(UserError, match="holds no sampling"):
        load_reference(str(tmp_path / "reference"))


# resume


@pytest.mark.parametrize("method", ["regression", "adversarial", "consistency"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    small_reference: Path,
    small_student: Path,
    stacks: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    how = (str(small_reference), small_student, None, stacks, settings(method=method))
    distill_run(tmp_path / "whole", *how)
    drawn, draw = 0, true_batch

    def interrupting(*arguments: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*arguments)

    monkeypatch.setattr(stage, "true_batch", interrupting)
    with pytest.raises(KeyboardInterrupt):
        distill_run(tmp_path / "parts", *how)
    assert 0 < read_counters(tmp_path / "parts/training/checkpoint.safetensors").step < 4
    with contextlib.suppress(KeyboardInterrupt):
        distill_run(tmp_path / "parts", *how)
    kept = [load_file(tmp_path / p / "training/checkpoint.safetensors") for p in ("whole", "parts")]
    assert kept[0].keys() == kept[1].keys()
    assert [n for n in kept[0] if not torch.equal(kept[0][n], kept[1][n])] == []
    logs = [(tmp_path / p / "training/train.jsonl").read_text() for p in ("whole", "parts")]
    losses = [[json.loads(line)["loss"] for line in log.splitlines()] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    small_reference: Path,
    small_student: Path,
    stacks: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how = (str(small_reference), small_student, None, stacks)
    distill_run(tmp_path, *how, settings(steps=2))
    good = (tmp_path / "training/checkpoint.safetensors").read_bytes()

    def broken(*_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor(float("nan"), requires_grad=True), "psnr_db": torch.zeros(())}

    monkeypatch.setattr(regression, "stack_losses", broken)
    with pytest.raises(UserError, match=r"loss is nan at step 2.*checkpoint, of step 2, stays"):
        distill_run(tmp_path, *how, settings(steps=4))
    assert (tmp_path / "training/checkpoint.safetensors").read_bytes() == good


# what is learned from


@pytest.mark.parametrize("method", ["regression", "consistency"])
@pytest.mark.parametrize("source", ["reference", "stacks"])
def test_the_references_stacks_or_true_ones_alone(
    small_reference: Path,
    small_student: Path,
    stacks: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    method: str,
) -> None:
    def unwanted(*_: Any, **__: Any) -> Any:
        raise AssertionError(f"not to be learned from: only {source}")

    if source == "stacks":
        monkeypatch.setattr(stage, "teacher_targets", unwanted)
        monkeypatch.setattr(stage, "sample_batch", unwanted)
    else:
        monkeypatch.setattr(stage, "true_stacks", unwanted)
        monkeypatch.setattr(stage, "true_batch", unwanted)
    asked = settings(method=method, steps=1, learn_from=source)
    given = stacks if source == "stacks" else None
    told = distill_run(tmp_path, str(small_reference), small_student, None, given, asked)
    assert told["learn_from"] == source and told["steps"] == 1 and told["held_out"] == 1
    assert told["targets"] == (1 if source == "reference" else 0)
    (row,) = (tmp_path / "training/train.jsonl").read_text().splitlines()
    assert np.isfinite(json.loads(row)["loss"]) and "teacher_" not in row


def test_stacks_that_are_scored_on_are_not_learned_from() -> None:
    numbered = np.arange(20, dtype=np.uint8)[:, None, None, None, None]
    many = np.broadcast_to(numbered, (20, 9, 3, 2, 2)).copy()
    held_out, others = stage.held_out_stacks(many)
    scored = [round(float(sample.stack.mean() + 1) * 127.5) for sample in held_out]
    assert scored == [0, 1, 2, 3] and sorted({int(stack.mean()) for stack in others}) == [
        *range(4, 20)
    ]
    assert [sample.position for sample in held_out] == [0, 1, 2, 3]
    assert all(torch.equal(s.photo[0], s.stack[s.position]) for s in held_out)
    assert len(stage.held_out_stacks(many[:1])[1]) == 1


# refusals


def test_a_teacher_of_other_frames_or_widths_is_refused(
    small_reference: Path, small_student: Path, stacks: np.ndarray, tmp_path: Path
) -> None:
    for change, said in (
        ({"num_frames": 14}, "expects 9 frames.* makes 14"),
        (
            {"block_out_channels": [32, 64]},
            r"unet.*expected shape torch.Size\(\[64\]\)",
        ),
        ({"in_channels": 12}, r"conv_in.weight expected shape torch.Size\(\[32, 12"),
    ):
        broken = tmp_path / "teacher"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(small_reference, broken)
        config = broken / "unet" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
        with pytest.raises(UserError, match=said):
            distill_run(tmp_path / "out", str(broken), small_student, None, stacks, settings())
        assert not (tmp_path / "out" / "targets").exists()


def test_stacks_of_mixed_sizes_are_refused(
    small_reference: Path, small_student: Path, tmp_path: Path
) -> None:
    from PIL import Image

    for scene, side in (("a", 64), ("b", 96)):
        (tmp_path / "stacks" / scene).mkdir(parents=True)
        for n in range(9):
            Image.new("RGB", (side, 64)).save(tmp_path / "stacks" / scene / f"{n}.png")
    with pytest.raises(UserError, match=r"a/0.png is 64x64, b/0.png is 96x64"):
        distill_run(
            tmp_path / "out",
            str(small_reference),
            small_student,
            settings=settings(sources=(str(tmp_path / "stacks"),)),
        )
    assert not (tmp_path / "out" / "targets").exists()


def test_another_preset_start_or_setting_is_refused(
    small_reference: Path, small_student: Path, stacks: np.ndarray, tmp_path: Path
) -> None:
    how = (str(small_reference), small_student, None, stacks)
    with pytest.raises(UserError, match=r"no student of preset phone .*its channels is"):
        distill_run(tmp_path, *how, settings(preset="phone"))
    distill_run(tmp_path, *how, settings(steps=1))
    with pytest.raises(UserError, match="seed was 0, is 1"):
        distill_run(tmp_path, *how, settings(seed=1))
    with pytest.raises(UserError, match="method was regression, is adversarial"):
        distill_run(tmp_path, *how, settings(method="adversarial"))
    other = build_student("phone")
    other.save_pretrained(tmp_path / "phone")
    with pytest.raises(UserError, match=r"student's channels was \[16, 32\], is \[128"):
        distill_run(
            tmp_path, str(small_reference), tmp_path / "phone", None, stacks, settings(steps=2)
        )


def test_targets_hold_the_seed_that_made_them(
    small_reference: Path, small_student: Path, stacks: np.ndarray, tmp_path: Path
) -> None:
    distill_run(
        tmp_path,
        str(small_reference),
        small_student,
        None,
        stacks,
        settings(method="consistency", steps=1),
    )
    paths = sorted((tmp_path / "targets").glob("*/*.safetensors"))
    sample = load_target(paths[1])
    expected = load_reference(str(small_reference))(
        sample.photo, sample.position, PUBLISHED, sample.seed
    )
    assert len(paths) == 2 and sample.position == 1
    assert (sample.stack - expected).abs().mean() < 0.03  # the photo was stored in 8 bits
