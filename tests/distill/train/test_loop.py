"""The training loop: exact resume, accumulation, budget, interruption, logs, refusals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from pocketfocus.distill.train import run_log
from pocketfocus.distill.train.checkpoint import Counters, read_counters, write_checkpoint
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.loop import Task, Trainer
from pocketfocus.distill.train.run_log import stack_picture
from pocketfocus.distill.train.schedule import OPTIMIZERS, Schedule
from pocketfocus.run.errors import UserError


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))


def task(net: nn.Module, batch: int = 16, **options: Any) -> Task:
    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn(1, size, generator=generator),)

    def losses(x: Tensor) -> dict[str, Tensor]:
        return {"loss": (net(x)[:, 0] - x.sum(1).tanh()).square().mean()}

    return Task(draw, losses, (Crops(1.0, batch, 4),), **options)


def trainer(folder: Path, config: dict[str, Any] | None = None, **changes: Any) -> Trainer:
    options = {"steps": 12, "learning_rate": 1e-2, "warmup_steps": 3, "log_every": 1, **changes}
    return Trainer(model(), Schedule(**options), folder, 7, config)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def stopping(net: nn.Module, at: int, how: Any) -> Task:
    """A task whose draw calls `how` in the step after `at` steps of 16 samples."""
    whole, drawn = task(net), 0

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        nonlocal drawn
        if drawn == 16 * at:
            how()
        drawn += 1
        return whole.draw(size, generator)

    return Task(draw, whole.losses, whole.crops)


def momentum(named: Mapping[str, nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    return torch.optim.SGD(named.values(), schedule.learning_rate, momentum=0.9)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint holds whatever the optimizer keeps of each parameter."""
    monkeypatch.setitem(OPTIMIZERS, "momentum", momentum)
    whole = trainer(tmp_path / "whole", optimizer=optimizer)
    whole.run(task(whole.model), "test")
    for _ in range(3):
        part = trainer(tmp_path / "parts", optimizer=optimizer)
        part.resume()
        with contextlib.suppress(KeyboardInterrupt):
            part.run(stopping(part.model, 4, lambda: os.kill(os.getpid(), signal.SIGINT)), "test")
    assert part.step == 12
    for name, parameter in whole.named.items():
        assert torch.equal(parameter, part.named[name]), name
        assert torch.equal(whole.ema.average[name], part.ema.average[name]), name
    logged = [[(r["step"], r["loss"]) for r in rows(tmp_path / n)] for n in ("whole", "parts")]
    assert logged[0] == logged[1]
    with pytest.raises(UserError, match=rf"optimizer was {optimizer}, is sgd"):
        monkeypatch.setitem(OPTIMIZERS, "sgd", momentum)
        trainer(tmp_path / "parts", optimizer="sgd").resume()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = trainer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(stopping(stopped.model, 4, lambda: os.kill(os.getpid(), number)), "test")
    assert read_counters(tmp_path / "checkpoint.safetensors").step == stopped.step == 5
    said = " ".join(capsys.readouterr().err.split())
    assert "stopped at step 5" in said and "run the same command again" in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_mid_step_leaves_the_checkpoint_of_before(tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    failed = trainer(tmp_path, checkpoint_minutes=0.0)
    with pytest.raises(RuntimeError, match="broken"):
        failed.run(stopping(failed.model, 4, broken), "test")
    assert read_counters(tmp_path / "checkpoint.safetensors").step == 4


def test_logs_go_on_without_a_row_twice(tmp_path: Path) -> None:
    """A killed training's rows after its checkpoint are dropped, and so is half a line."""
    first = trainer(tmp_path, steps=4)
    first.run(task(first.model), "test")
    with open(tmp_path / "train.jsonl", "a") as log:
        log.write('{"step": 5, "loss": 9}\n{"step": 6, "lo')
    second = trainer(tmp_path)
    second.resume()
    second.run(task(second.model), "test")
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))
    assert {"loss", "lr", "grad_norm", "samples_per_s"} <= set(events.Tags()["scalars"])


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", bf16=False)
    whole.run(task(whole.model, 16), "test")
    parts = trainer(tmp_path / "parts", bf16=False, accumulate=4)
    parts.run(task(parts.model, 4), "test")
    for name, parameter in whole.named.items():
        torch.testing.assert_close(parameter, parts.named[name], rtol=1e-4, atol=1e-6)
    losses = [[row["loss"] for row in rows(tmp_path / n)] for n in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


def test_the_loss_falls_and_the_forward_is_bf16(tmp_path: Path) -> None:
    net = trainer(tmp_path, steps=200, bf16=True)
    inner, types = task(net.model), set()

    def losses(x: Tensor) -> dict[str, Tensor]:
        types.add(net.model(x).dtype)
        return inner.losses(x)

    net.run(Task(inner.draw, losses, inner.crops), "test")
    first, last = (
        sum(r["loss"] for r in part) for part in (rows(tmp_path)[:40], rows(tmp_path)[-40:])
    )
    assert last < 0.8 * first and types == {torch.bfloat16}


def test_minutes_bound_the_training(tmp_path: Path) -> None:
    timed = trainer(tmp_path, minutes=0.01, steps=10**9)
    timed.run(task(timed.model), "test")
    assert 0.01 <= timed.minutes < 0.1 and timed.step > 1
    assert Trainer(model(), Schedule(minutes=0), tmp_path / "none").progress == 1.0


def test_pace_and_time_left_are_said_where_there_is_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "REPORT_SECONDS", 0.0)
    net = trainer(tmp_path)
    net.run(task(net.model), "test")
    line = capsys.readouterr().err.splitlines()[2]
    assert "samples/s" in line and "step 3" in line and "left" in line


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    tmp_path: Path, bad: float
) -> None:
    net = trainer(tmp_path, checkpoint_minutes=0.0)
    good, calls = task(net.model), 0

    def losses(x: Tensor) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return good.losses(x if calls < 4 else x * bad)

    with pytest.raises(UserError, match=r"at step 3: .*last good checkpoint, of step 3, stays"):
        net.run(Task(good.draw, losses, good.crops), "test")
    tensors = load_file(tmp_path / "checkpoint.safetensors")
    assert all(t.isfinite().all() for n, t in tensors.items() if n != "random")


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).save()
    options = {"learning_rate": 1e-2, "warmup_steps": 3}
    with pytest.raises(UserError, match="another model"):
        Trainer(nn.Linear(4, 8), Schedule(**options), tmp_path, 7).resume()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 0.5}, r"learning_rate was 0\.01, is 0\.5"),
        ({"accumulate": 2}, "processes x accumulate was 1, is 2"),
        ({"config": {"scenes": 9}}, "scenes was 8, is 9"),
    ],
)
def test_another_config_is_refused_with_what_differs(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    trainer(tmp_path, {"scenes": 8}).save()
    with pytest.raises(UserError, match=said):
        trainer(tmp_path, **{"config": {"scenes": 8}, **changes}).resume()


def test_a_longer_budget_and_a_checkpoint_of_other_options_are_taken(tmp_path: Path) -> None:
    first = trainer(tmp_path, {"scenes": 8})
    first.save()
    assert trainer(tmp_path, {"scenes": 8}, steps=99, checkpoint_minutes=1.0).resume()
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, load_file(path), Counters(3, 1.5, {"later": True}))
    other = trainer(tmp_path, {"scenes": 9})
    assert other.resume() and (other.step, other.minutes) == (3, 1.5)


def test_a_broken_checkpoint_is_one_line(tmp_path: Path) -> None:
    trainer(tmp_path).save()
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot be read"):
        trainer(tmp_path).resume()


def test_pictures_show_the_average_and_change_nothing(tmp_path: Path) -> None:
    seen = []

    def pictures() -> dict[str, Tensor]:
        seen.append([p.clone() for p in drawn.model.parameters()])
        truth = torch.rand(9, 3, 8, 8) * 2 - 1
        return {"stack": stack_picture(truth, truth / 2, 4)}

    plain = trainer(tmp_path / "plain")
    plain.run(task(plain.model), "test")
    drawn = trainer(tmp_path / "drawn", picture_minutes=0.0)
    drawn.run(task(drawn.model, pictures=pictures), "test")
    for name, parameter in plain.named.items():
        assert torch.equal(parameter, drawn.named[name]), name
    for shown, average in zip(seen[-1], drawn.ema.average.values(), strict=True):
        assert torch.equal(shown, average)
    events = EventAccumulator(str(tmp_path / "drawn" / "tensorboard"), {"images": 0})
    events.Reload()
    images = events.Images("stack")
    assert [image.step for image in images] == list(range(1, 13))
    assert (images[0].height, images[0].width) == (24, 72)
