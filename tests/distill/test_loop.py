"""The training loop: exact resume, budget, refusals."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pocketfocus.distill.loop import Schedule, Trainer
from pocketfocus.errors import UserError


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))


def losses_of(net: nn.Module):  # type: ignore[no-untyped-def]
    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(16, 4, generator=generator)
        return {"loss": (net(x)[:, 0] - x.sum(1).tanh()).square().mean()}

    return losses


def train(folder: Path, stops: tuple[int, ...], total: int) -> Trainer:
    """Train in several sittings, each killed at its stop and resumed by the next."""
    return [sitting(folder, stop, total) for stop in stops][-1]


def sitting(folder: Path, stop: int, total: int) -> Trainer:
    """Resume what is there and train up to step `stop` of `total`."""
    net = model()
    schedule = Schedule(steps=total, learning_rate=1e-2, warmup_steps=3, log_every=1)
    trainer = Trainer(net, schedule, folder, seed=7)
    trainer.resume()
    inner = losses_of(net)

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        if trainer.step == stop and stop < total:
            raise KeyboardInterrupt
        return inner(generator)

    with contextlib.suppress(KeyboardInterrupt):
        trainer.run(losses, "test")
    trainer.save()
    return trainer


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", (12,), 12)
    parts = train(tmp_path / "parts", (5, 9, 12), 12)
    for name, parameter in whole.named.items():
        assert torch.equal(parameter, parts.named[name]), name
        assert torch.equal(whole.average[name], parts.average[name]), name
    rows = [
        [json.loads(line) for line in (tmp_path / n / "train.jsonl").read_text().splitlines()]
        for n in ("whole", "parts")
    ]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]


def test_the_loss_falls(tmp_path: Path) -> None:
    train(tmp_path, (300,), 300)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    first, last = (sum(r["loss"] for r in part) for part in (rows[:50], rows[-50:]))
    assert last < 0.8 * first


def test_minutes_bound_the_training(tmp_path: Path) -> None:
    net = model()
    trainer = Trainer(net, Schedule(minutes=0.01), tmp_path)
    trainer.run(losses_of(net), "test")
    assert 0.01 <= trainer.minutes < 0.1 and trainer.step > 1


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    net = model()
    trainer = Trainer(net, Schedule(steps=5), tmp_path)
    trainer.save()
    with pytest.raises(UserError, match="loss is nan at step 0"):
        trainer.run(lambda _: {"loss": net(torch.full((1, 4), torch.nan)).sum()}, "test")
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    Trainer(model(), Schedule(steps=1), tmp_path).save()
    with pytest.raises(UserError, match="another model"):
        Trainer(nn.Linear(4, 8), Schedule(steps=1), tmp_path).resume()
