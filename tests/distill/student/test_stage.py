"""The distill stage at a small size: results, resume, what is learned from, and refusals."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pocketfocus.distill.student import regression, stage
from pocketfocus.distill.student.options import STACKS, Distillation
from pocketfocus.distill.student.samples import Sample, true_batch
from pocketfocus.distill.student.stage import distill_run
from pocketfocus.distill.train.checkpoint import read_counters
from pocketfocus.distill.train.crops import Crops
from pocketfocus.models.loading import load_reference
from pocketfocus.models.student import PRESETS, build_student, load_student, save_student
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, sha256


def test_distils_and_writes_everything(
    options: Callable[..., Distillation], tmp_path: Path
) -> None:
    distill_run(tmp_path, options())
    summary = read_json(tmp_path / "distill.json")
    student = load_student(tmp_path / "student")
    assert student.photo_size == (64, 64)
    assert summary["targets"] == 2 and summary["held_out"] == 1 and summary["steps"] == 3
    assert summary["kept"] == (
        "trained" if summary["after_db"] >= summary["before_db"] else "start"
    )
    rows = [json.loads(r) for r in (tmp_path / "training" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == summary["steps"] and all(np.isfinite(r["loss"]) for r in rows)
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("scratch", [False, True])
def test_only_from_scratch_does_what_a_start_knows_change(
    scratch: bool,
    options: Callable[..., Distillation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(regression.Regression, "keep_known", lambda self: asked.append(True))
    how = options(method="regression")
    distill_run(tmp_path, replace(how, from_scratch=scratch, preset="micro" if scratch else None))
    assert bool(asked) is not scratch


@pytest.mark.parametrize(("method", "stays"), [("regression", "start"), ("adversarial", "trained")])
def test_a_worse_result_is_not_kept_unless_the_method_aims_at_looks(
    method: str,
    stays: str,
    options: Callable[..., Distillation],
    small_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter([30.0, 20.0])
    monkeypatch.setattr(stage, "score", lambda *_: next(scores))
    distill_run(tmp_path, options(method=method))
    assert read_json(tmp_path / "distill.json")["kept"] == stays
    start, kept = (load_student(f).state_dict() for f in (small_student, tmp_path / "student"))
    assert all(torch.equal(start[name], kept[name]) for name in start) == (stays == "start")


def test_only_what_was_begun_with_the_same_goes_on(
    options: Callable[..., Distillation], tmp_path: Path
) -> None:
    mark = tmp_path / "training" / "mark"

    def goes_on(key: str, **changes: object) -> bool:
        distill_run(tmp_path, options(steps=1, **changes), begun_with=key)
        there = mark.exists()
        mark.touch()
        return there

    assert [goes_on("a"), goes_on("a"), goes_on("b", seed=1), goes_on("b", seed=1)] == [
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("then", [{"minutes": 0}, {"seed": 1}])
def test_a_training_that_distill_began_is_not_lost(
    options: Callable[..., Distillation], tmp_path: Path, then: dict[str, int]
) -> None:
    distill_run(tmp_path, options(steps=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="training of `pocketfocus distill`, which would be lost"):
        distill_run(tmp_path, options(steps=1, **then), begun_with="" if "minutes" in then else "a")
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path in before
    } == before


def test_zero_minutes_copy_the_start(
    options: Callable[..., Distillation], small_student: Path, tmp_path: Path
) -> None:
    distill_run(tmp_path, options(minutes=0))
    assert sha256(tmp_path / "student") == sha256(small_student)


@pytest.mark.usefixtures("short_trajectories")
@pytest.mark.parametrize("method", ["consistency", "regression"])
def test_a_few_are_scored_where_nothing_is_chosen_by_it(
    method: str,
    options: Callable[..., Distillation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At full size a stack takes a minute of many cores."""
    monkeypatch.setattr(stage, "SCORED", 1)
    scored: list[int] = []

    def score(_: object, samples: Sequence[Sample], pool: int) -> float:
        scored.append(len(samples))
        return 1.0

    monkeypatch.setattr(stage, "score", score)
    distill_run(tmp_path, options(method=method, steps=1, max_teacher_stacks=10))
    assert scored == ([1, 1] if method == "consistency" else [2, 2])
    assert read_json(tmp_path / "distill.json")["held_out"] == 2


def test_it_is_scored_where_it_trains(
    small_reference: Path, small_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = torch.device("meta")
    monkeypatch.setattr(stage, "process_state", lambda: SimpleNamespace(device=elsewhere))
    reference, student = load_reference(str(small_reference)), load_student(small_student)
    trained, found = regression.Regression(reference, student), []
    refocus = trained.refocus

    def kept(*asked: Any) -> torch.Tensor:
        found.append(refocus(*asked))
        return torch.zeros(found[-1].shape)

    monkeypatch.setattr(trained, "refocus", kept)
    photo = torch.zeros(1, 3, 64, 64)
    stage.score(trained, [Sample(photo, 4, torch.ones(9, 3, 64, 64))], 1)
    assert [made.device for made in found] == [elsewhere]


def test_another_number_of_teacher_stacks_is_said_to_change_nothing(
    options: Callable[..., Distillation], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "it goes on with the 2 teacher stacks that it began with, of --teacher-stacks 2: 5 would"
    for steps, count, expected in ((1, 2, False), (2, 2, False), (3, 5, True), (4, 5, True)):
        distill_run(tmp_path, options(steps=steps, max_teacher_stacks=count))
        assert (said in " ".join(capfd.readouterr().err.split())) is expected
    assert len(list((tmp_path / "targets").glob("*/*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "config.json").write_text('{"_class_name": "UNet"}'), "holds a UNet"),
        (lambda f: [p.rename(p.with_suffix(".bin")) for p in f.glob("*.safetensors")], "pickled"),
        (
            lambda f: (f / "config.json").write_text(
                (f / "config.json").read_text().replace('"head": 32', '"head": 24')
            ),
            "do not fit",
        ),
    ],
)
def test_a_broken_student_is_refused_before_anything_is_written(
    options: Callable[..., Distillation],
    small_student: Path,
    tmp_path: Path,
    change: object,
    said: str,
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small_student, broken)
    change(broken)  # type: ignore[operator]
    with pytest.raises(UserError, match=said):
        distill_run(tmp_path / "out", options(start=broken, minutes=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("short_trajectories")
@pytest.mark.parametrize("method", ["regression", "adversarial", "consistency", "scratch"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    options: Callable[..., Distillation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    how = options(method=method, steps=4, max_teacher_stacks=2)
    if method == "scratch":
        how = replace(how, method="regression", from_scratch=True, preset="micro")
    distill_run(tmp_path / "whole", how)
    drawn, draw = 0, true_batch

    def interrupting(*arguments: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*arguments)

    monkeypatch.setattr(stage, "true_batch", interrupting)
    with pytest.raises(KeyboardInterrupt):
        distill_run(tmp_path / "parts", how)
    assert 0 < read_counters(tmp_path / "parts/training/checkpoint.safetensors").step < 4
    with contextlib.suppress(KeyboardInterrupt):
        distill_run(tmp_path / "parts", how)
    kept = [load_file(tmp_path / p / "training/checkpoint.safetensors") for p in ("whole", "parts")]
    assert kept[0].keys() == kept[1].keys()
    assert [n for n in kept[0] if not torch.equal(kept[0][n], kept[1][n])] == []
    logs = [(tmp_path / p / "training/train.jsonl").read_text() for p in ("whole", "parts")]
    losses = [[json.loads(line)["loss"] for line in log.splitlines()] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    options: Callable[..., Distillation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill_run(tmp_path, options(steps=2))
    good = (tmp_path / "training/checkpoint.safetensors").read_bytes()

    def broken(*_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor(float("nan"), requires_grad=True), "psnr_db": torch.zeros(())}

    monkeypatch.setattr(regression, "compared", broken)
    with pytest.raises(UserError, match=r"loss is nan at step 2.*checkpoint, of step 2, stays"):
        distill_run(tmp_path, options(steps=4))
    assert (tmp_path / "training/checkpoint.safetensors").read_bytes() == good


@pytest.mark.usefixtures("short_trajectories")
@pytest.mark.parametrize("method", ["regression", "consistency"])
@pytest.mark.parametrize("source", ["reference", "stacks"])
def test_the_references_stacks_or_true_ones_alone(
    options: Callable[..., Distillation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    method: str,
) -> None:
    def unwanted(*_: Any, **__: Any) -> Any:
        raise AssertionError(f"not to be learned from: only {source}")

    if source == "stacks":
        monkeypatch.setattr(stage, "sample_teacher_stacks", unwanted)
        monkeypatch.setattr(stage, "sample_batch", unwanted)
    else:
        monkeypatch.setattr(stage, "cache_sources", unwanted)
        monkeypatch.setattr(stage, "true_batch", unwanted)
    chosen = options(method=method, steps=1, learn_from=source, max_teacher_stacks=2)
    distill_run(tmp_path, chosen)
    summary = read_json(tmp_path / "distill.json")
    assert summary["learn_from"] == source and summary["steps"] == summary["held_out"] == 1
    assert summary["targets"] == (1 if source == "reference" else 0)
    (row,) = (tmp_path / "training/train.jsonl").read_text().splitlines()
    assert np.isfinite(json.loads(row)["loss"]) and "teacher_" not in row


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns_from_windows_of_any_size(
    preset: str, write_stacks: Callable[[Path, np.ndarray], Path], tmp_path: Path
) -> None:
    odd = np.random.default_rng(0).integers(0, 255, (2, 9, 3, 72, 88), np.uint8)
    folder = str(write_stacks(tmp_path / "stacks", odd))
    options = Distillation(
        math.inf,
        steps=1,
        from_scratch=True,
        preset=preset,
        sources=("rgbd", folder),
        scenes=1,
        crops=(Crops(1.0, 1, 64),),
        learn_from=STACKS,
    )
    distill_run(tmp_path / "out", options)
    assert read_json(tmp_path / "out/distill.json")["held_out"] == 2


def test_a_reference_of_other_frames_or_widths_is_refused(
    options: Callable[..., Distillation], small_reference: Path, tmp_path: Path
) -> None:
    for change, said in (
        ({"num_frames": 14}, "has 9 frames.* makes 14"),
        (
            {"block_out_channels": [32, 64]},
            r"unet.*expected shape torch.Size\(\[64\]\)",
        ),
        ({"in_channels": 12}, r"conv_in.weight expected shape torch.Size\(\[32, 12"),
    ):
        broken = tmp_path / "reference"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(small_reference, broken)
        config = broken / "unet" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
        with pytest.raises(UserError, match=said):
            distill_run(tmp_path / "out", options(reference=str(broken)))
        assert not (tmp_path / "out" / "targets").exists()


def test_stacks_of_mixed_sizes_are_refused(
    options: Callable[..., Distillation], tmp_path: Path
) -> None:
    for scene, side in (("a", 64), ("b", 96)):
        (tmp_path / "stacks" / scene).mkdir(parents=True)
        for n in range(9):
            Image.new("RGB", (side, 64)).save(tmp_path / "stacks" / scene / f"{n}.png")
    with pytest.raises(UserError, match=r"a/0.png is 64x64, b/0.png is 96x64"):
        distill_run(tmp_path / "out", options(sources=(str(tmp_path / "stacks"),)))
    assert not (tmp_path / "out" / "targets").exists()


def test_another_preset_start_or_setting_is_refused(
    options: Callable[..., Distillation], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no student of preset phone .*its channels is"):
        distill_run(tmp_path, options(preset="phone"))
    distill_run(tmp_path, options(steps=1))
    with pytest.raises(UserError, match="seed was 0, is 1"):
        distill_run(tmp_path, options(seed=1))
    with pytest.raises(UserError, match="method was regression, is adversarial"):
        distill_run(tmp_path, options(method="adversarial"))
    other = build_student("phone")
    save_student(other, tmp_path / "phone", half=False)
    with pytest.raises(UserError, match=r"student's channels was \[16, 32\], is \[64, 128"):
        distill_run(tmp_path, options(start=tmp_path / "phone", steps=2))
