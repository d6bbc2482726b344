"""The distill stage at a small size: targets, losses, and a student never worse than its start."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pocketfocus.data.scenes import held_out_photos
from pocketfocus.distill.student import stage
from pocketfocus.distill.student import teacher_stacks as targets
from pocketfocus.distill.student.methods import get_method
from pocketfocus.distill.student.regression import Regression, stack_losses
from pocketfocus.distill.student.stage import Distillation, distill_run
from pocketfocus.distill.student.teacher_stacks import (
    load_target,
    random_photo_crop,
    sample_batch,
    save_target,
    teacher_targets,
    true_batch,
)
from pocketfocus.distill.train.crops import Crops
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import ReferencePipeline, Sampling
from pocketfocus.models.student import RefocusStudent, load_student
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256


@pytest.fixture(scope="module")
def reference(small_reference: Path) -> ReferencePipeline:
    return load_reference(str(small_reference))


@pytest.fixture(scope="module")
def stacks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (2, 9, 3, 64, 64), np.uint8)


def settings(**changes: object) -> Distillation:
    clockless = {"minutes": math.inf, "steps": 3, "max_targets": 3}
    options = {**clockless, "crops": (Crops(1.0, 1, 64),), **changes}
    return Distillation(**options)  # type: ignore[arg-type]


def test_targets_are_the_references_own_stacks_and_resume(
    reference: ReferencePipeline, tmp_path: Path
) -> None:
    arguments = (reference, held_out_photos(), tmp_path)
    first = teacher_targets(*arguments, count=2, minutes=9, size=64, sampling=Sampling(1))
    before = [sha256(path) for path in first]
    files = teacher_targets(*arguments, count=3, minutes=9, size=64, sampling=Sampling(1))
    assert [sha256(path) for path in files[:2]] == before and len(files) == 3
    sample = load_target(files[2])
    assert sample.position == 2
    expected = reference(sample.photo, 2, Sampling(1), 2)
    assert (sample.stack - expected).abs().max() < 0.05  # the photo was stored in 8 bits


def test_no_minutes_still_make_one_target(reference: ReferencePipeline, tmp_path: Path) -> None:
    made = teacher_targets(
        reference, held_out_photos(), tmp_path, 9, minutes=0, size=64, sampling=Sampling(1)
    )
    assert len(made) == 1


def test_processes_share_the_targets(
    reference: ReferencePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Number k of two makes k, k + 2, …, and what they make is what one process makes."""
    arguments = (reference, held_out_photos())
    options = {"count": 3, "minutes": 9, "size": 64, "sampling": Sampling(1)}
    alone = teacher_targets(*arguments, tmp_path / "alone", **options)  # type: ignore[arg-type]
    for index, made in ((1, ["000001"]), (0, ["000000", "000001", "000002"])):
        state = SimpleNamespace(
            process_index=index,
            num_processes=2,
            device=torch.device("cpu"),
            is_main_process=index == 0,
            wait_for_everyone=lambda: None,
        )
        monkeypatch.setattr(targets, "process_state", lambda state=state: state)
        teacher_targets(*arguments, tmp_path / "shared", **options)  # type: ignore[arg-type]
        assert sorted(path.stem for path in (tmp_path / "shared").iterdir()) == made
    for path in alone:
        assert sha256(path) == sha256(tmp_path / "shared" / path.name)


def test_a_saved_target_comes_back(tmp_path: Path) -> None:
    photo, stack = torch.rand(1, 3, 8, 8) * 2 - 1, torch.rand(9, 3, 8, 8) * 2 - 1
    save_target(tmp_path / "t.safetensors", photo, 5, stack)
    back = load_target(tmp_path / "t.safetensors")
    assert back.position == 5
    torch.testing.assert_close(back.photo, photo, atol=1 / 255, rtol=0)
    torch.testing.assert_close(back.stack, stack, atol=1 / 255, rtol=0)


def test_true_batch_takes_the_photo_from_its_position(stacks: np.ndarray) -> None:
    photos, positions, frames = true_batch(stacks, 4, 32, torch.Generator().manual_seed(0))
    for photo, position, stack in zip(photos, positions, frames, strict=True):
        assert torch.equal(photo, stack[position])


def test_flips_keep_photo_and_stack_together(tmp_path: Path) -> None:
    stack = torch.rand(9, 3, 8, 8) * 2 - 1
    save_target(tmp_path / "t.safetensors", stack[3:4], 3, stack)
    sample = load_target(tmp_path / "t.safetensors")
    photos, positions, stacks = sample_batch([sample], 8, torch.Generator().manual_seed(0))
    for photo, position, made in zip(photos, positions, stacks, strict=True):
        assert torch.equal(photo, made[position])


def test_regression_is_zero_only_for_the_stack_itself(reference: ReferencePipeline) -> None:
    student = RefocusStudent(channels=(8, 8), blocks=(1, 1), size=(32, 32))
    photo = torch.rand(2, 3, 32, 32) * 1.8 - 0.9
    copies = photo[:, None].expand(2, 9, 3, 32, 32)
    positions = torch.tensor([0, 8])
    learner = Regression(reference, student)
    same = learner.losses(photo, positions, copies)  # untrained: copies its photo
    other = learner.losses(photo, positions, copies.roll(1, -1))
    assert same["loss"] == 0 < other["loss"]


def test_the_loss_has_an_edge_and_an_adjacent_frame_term() -> None:
    """Summed frame by frame in numpy; the frame of the photo's own position counts only beside its
    neighbours."""
    generator = np.random.default_rng(0)
    made, stacks = generator.uniform(-1, 1, (2, 2, 9, 3, 6, 5))
    positions = [2, 8]

    def log(error: np.ndarray) -> float:
        return float(np.log(1 + (error**2).mean() / 4e-4))

    pixel, edge, adjacent = [], [], []
    for photo, position in enumerate(positions):
        error = made[photo] - stacks[photo]
        for frame in set(range(9)) - {position}:
            pixel.append(log(error[frame]))
            across = error[frame][:, :, 1:] - error[frame][:, :, :-1]
            down = error[frame][:, 1:] - error[frame][:, :-1]
            edge.append(log(across) + log(down))
        adjacent += [log(error[frame + 1] - error[frame]) for frame in range(8)]
    expected = np.mean(pixel) + 0.1 * np.mean(edge) + 0.1 * np.mean(adjacent)
    tensors = torch.from_numpy(made), torch.from_numpy(stacks)
    photos = tensors[1][torch.arange(2), torch.tensor(positions)]
    found = stack_losses(tensors[0], photos, torch.tensor(positions), tensors[1])
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-6)


def test_gain_is_over_copying_and_leaves_out_the_photos_own_frame(
    reference: ReferencePipeline,
) -> None:
    student = RefocusStudent(channels=(8, 8), blocks=(1, 1), size=(32, 32))  # copies its photo
    stacks = torch.rand(2, 9, 3, 32, 32) - 0.5
    positions = torch.tensor([0, 8])
    photo = stacks[torch.arange(2), positions]
    learner = Regression(reference, student)
    found = learner.losses(photo, positions, stacks)
    others = torch.cat([stacks[0, 1:] - photo[0], stacks[1, :8] - photo[1]])
    assert found["gain_db"] == 0
    assert found["psnr_db"] == pytest.approx(float(10 * (4 / others.square().mean()).log10()))


def test_small_photos_are_refused() -> None:
    with pytest.raises(UserError, match="40x30"):
        random_photo_crop([np.zeros((30, 40, 3), np.uint8)], 64, torch.Generator())


def test_distils_and_writes_everything(
    small_reference: Path, small_student: Path, stacks: np.ndarray, tmp_path: Path
) -> None:
    summary = distill_run(
        tmp_path, str(small_reference), small_student, stacks=stacks, settings=settings()
    )
    student = load_student(tmp_path / "student")
    assert student.photo_size == (64, 64)
    assert summary["targets"] == 2 and summary["held_out"] == 1 and summary["steps"] == 3
    assert summary["kept"] == (
        "trained" if summary["after_db"] >= summary["before_db"] else "start"
    )
    rows = [json.loads(r) for r in (tmp_path / "training" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == summary["steps"] and all(np.isfinite(r["loss"]) for r in rows)
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("method", "stays"), [("regression", "start"), ("adversarial", "trained")])
def test_a_worse_result_is_not_kept_unless_the_method_aims_at_looks(
    method: str,
    stays: str,
    small_reference: Path,
    small_student: Path,
    stacks: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter([30.0, 20.0])
    monkeypatch.setattr(stage, "score", lambda *_: next(scores))
    chosen = settings(method=method)
    summary = distill_run(
        tmp_path, str(small_reference), small_student, stacks=stacks, settings=chosen
    )
    assert summary["kept"] == stays
    start, kept = (load_student(f).state_dict() for f in (small_student, tmp_path / "student"))
    assert all(torch.equal(start[name], kept[name]) for name in start) == (stays == "start")


def test_zero_minutes_copy_the_start(small_student: Path, tmp_path: Path) -> None:
    distill_run(tmp_path, start=small_student, settings=settings(minutes=0))
    assert sha256(tmp_path / "student") == sha256(small_student)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "config.json").write_text('{"_class_name": "UNet"}'), "holds a UNet"),
        (lambda f: [p.rename(p.with_suffix(".bin")) for p in f.glob("*.safetensors")], "pickled"),
        (
            lambda f: (f / "config.json").write_text(
                (f / "config.json").read_text().replace('"expansion": 2', '"expansion": 3')
            ),
            "do not fit",
        ),
    ],
)
def test_a_broken_student_is_refused_before_anything_is_written(
    small_student: Path, tmp_path: Path, change: object, said: str
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(small_student, broken)
    change(broken)  # type: ignore[operator]
    with pytest.raises(UserError, match=said):
        distill_run(tmp_path / "out", start=broken, settings=settings(minutes=0))
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_names_the_known() -> None:
    with pytest.raises(UserError, match="regression"):
        get_method("magic")
