"""What files lose against true stacks: the student's own figure is the yardstick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pocketfocus.benchmarks.gates import SAME_FILE
from pocketfocus.data.optics import one_hot
from pocketfocus.data.stacks import FocalStack
from pocketfocus.models.model import NamedModel
from pocketfocus.models.student import load_student
from pocketfocus.research import losses as module
from pocketfocus.research.losses import fewest_bits, losses
from pocketfocus.research.quantization import files_table
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.manifest import Artifact, load_manifest
from tests.benchmarks.rows import verify_row

FILES = ("onnx/student-fp32.onnx", "onnx/student-int8.onnx", "onnx/student-int4.onnx")


def bits(artifact: Artifact) -> Artifact:
    found = {"fp32": 32, "int8": 8, "int4": 4}[artifact.precision]
    return replace(artifact, applied={"layers": {"a": {"bits": 32}, "b": {"bits": found}}})


@pytest.fixture
def run(
    make_run: Callable[..., None],
    small_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Files that are the student, off by so much: fp32 by nothing, int8 a little, int4 a lot."""
    make_run(tmp_path, small_student, FILES)
    manifest = load_manifest(tmp_path)
    replace(manifest, artifacts=[bits(artifact) for artifact in manifest.artifacts]).save(tmp_path)
    student, off = load_student(small_student), {"fp32": 0.0, "int8": 0.002, "int4": 0.5}

    def opened(_: Path, artifact: Artifact, size: tuple[int, int]) -> NamedModel:
        shift = off[artifact.precision]
        return NamedModel(artifact.name, size, lambda p, at: student.stack(p, one_hot(at)) + shift)

    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(FRAMES, 3, 64, 64, generator=generator) * 1.6 - 0.8
    stack = FocalStack("made", frames, tuple(map(float, range(FRAMES))))
    monkeypatch.setattr(module, "opened", opened)
    monkeypatch.setattr(module, "true_stacks", lambda *_: ([stack], ""))
    return tmp_path


def test_a_loss_is_the_students_figure_less_the_files(run: Path) -> None:
    rows = losses(run, ["synthetic"], scenes=1, inputs_per_scene=2)
    exact, little, much = rows
    assert [row.artifact for row in rows] == list(FILES)
    assert exact.loss_db == 0.0 and exact.most_db is None and exact.status == "pass"
    assert abs(little.loss_db) < 0.1 and (little.most_db, little.status) == (0.1, "pass")
    assert much.loss_db > 0.3 and (much.most_db, much.status) == (0.3, "fail")
    for row in rows:
        assert row.loss_db == pytest.approx(row.student_db - row.psnr_db, abs=2e-4)


def test_losses_are_columns_of_the_table(run: Path) -> None:
    rows = losses(run, ["synthetic"], scenes=1, inputs_per_scene=1)
    artifacts = load_manifest(run).artifacts
    head, _, exact, _, much = files_table(artifacts, [], rows).splitlines()
    assert "| loss on synthetic, dB |" in head
    assert "| 0.000 |" in exact
    assert f"| {rows[2].loss_db:.3f} fail |" in much
    assert "loss" not in files_table(artifacts, [])


def test_other_devices_are_columns_beside_this_hosts_parity(run: Path) -> None:
    artifacts = load_manifest(run).artifacts[:1]
    about = {"artifact": artifacts[0].name, "target": artifacts[0].target}
    same = {"gate": f"{SAME_FILE} host", "psnr_db": 44.0, "status": "fail"}
    verify = [
        verify_row(**about, psnr_db=60.0),
        verify_row(**about, device="arm64", psnr_db=50.0),
        verify_row(**about, device="arm64", **same),
    ]
    head, _, line = files_table(artifacts, verify).splitlines()
    assert "| worst output, dB | arm64 against host, dB |" in head
    assert "| 60.0 pass | 44.0 fail |" in line
    assert "arm64" not in files_table(artifacts, verify[:1])


def test_a_file_that_says_nothing_has_no_limit() -> None:
    assert fewest_bits(Artifact("a", "onnx", "int8", "", 0)) == 32
