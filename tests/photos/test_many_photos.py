"""Folders of 500 photos under a memory limit, which all of them together would exceed."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pocketfocus.benchmarks import checks, verify
from pocketfocus.benchmarks.verify import Verification
from pocketfocus.cli import arguments
from pocketfocus.distill.student import teacher_stacks
from pocketfocus.mobile_harness.device import Job, Result
from pocketfocus.models.student import Analysis, RefocusStudent, load_student

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it limits no memory elsewhere")
COUNT, WIDTH, HEIGHT = 500, 640, 480  # 460 MB decoded
LIMIT = 200 << 20


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(folder / "0.jpg")
    for number in range(1, COUNT):
        (folder / f"{number}.jpg").write_bytes((folder / "0.jpg").read_bytes())
    found = arguments.photo_files(folder)
    assert found is not None and len(found) == COUNT
    return found


@contextmanager
def limited() -> Iterator[None]:
    """This process gets no more memory than `LIMIT` beside what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Quick(nn.Module):
    """Answers of a student's shapes for 64-pixel photos, without its work."""

    def __init__(self, student: RefocusStudent) -> None:
        super().__init__()
        self.answer = student.analyse(torch.zeros(1, 3, 64, 64), torch.eye(9)[:1])

    def forward(self, photo: Tensor, position: Tensor) -> Analysis:
        return Analysis(*(part.clone() for part in self.answer))


class Answers:
    """A device on which files answer as their student does."""

    name = "in-process"

    def __init__(self, student: Quick) -> None:
        self.student, self.calls = student, 0

    def describe(self) -> dict[str, str]:
        return {}

    def why_not(self, target: str) -> str | None:
        return None

    def run(self, job: Job) -> Result:
        photos, positions = map(torch.from_numpy, job.inputs)
        self.calls += len(job.calls)
        made = [self.student(photos[i], positions[p]) for i, p in job.calls]
        outputs = tuple(torch.stack(each).numpy() for each in zip(*made, strict=True))
        return Result(outputs, 1.0, 1.0, (), 1.0, 1)


@torch.inference_mode()
def test_verify_holds_few_photos_at_a_time(
    files: list[Path],
    small_student: Path,
    make_run: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = Quick(load_student(small_student))
    monkeypatch.setattr(verify, "load_parent", lambda folder, manifest: quick)
    monkeypatch.setattr(checks, "captured_graph", lambda student, shape: student)
    make_run(tmp_path, small_student, ["onnx/student-fp32.onnx"])
    device = Answers(quick)
    with limited():
        rows = verify.verify_run(tmp_path, device, Verification(files, positions=[4]))
    assert {row.status for row in rows} == {"pass"} and device.calls >= COUNT


def test_distill_holds_few_photos_at_a_time(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_stacks, "KEPT_BYTES", LIMIT // 4)
    with limited():
        photos = teacher_stacks.load_photos(files, 64)
        assert all(photos[index].shape == (HEIGHT, WIDTH, 3) for index in range(COUNT))
