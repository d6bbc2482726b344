"""Files that render: held against the module on tiles of a photo, timed, and published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketfocus.benchmarks.latency import Bench, bench_run, ratios
from pocketfocus.benchmarks.measured import MeasuredRun
from pocketfocus.benchmarks.proof import doubts
from pocketfocus.benchmarks.rendering import SETTINGS, TILES, render_check
from pocketfocus.benchmarks.verify import Verification, verify_run
from pocketfocus.mobile_harness.device import Job, Result
from pocketfocus.models.render import FIXED, Render
from pocketfocus.models.student import load_student
from pocketfocus.run.manifest import load_manifest, renders

MakeRun = Callable[..., None]
STUDENT, RENDERS = "onnx/student-fp32.onnx", "onnx/render-fp32.onnx"


class InProcess:
    """A device that makes the module's own images, `off` by so much, and no stacks."""

    name = "in-process"

    def __init__(self, off: float = 0.0) -> None:
        self.off = off
        self.jobs: list[Job] = []

    def describe(self) -> dict[str, str]:
        return {}

    def why_not(self, target: str) -> str | None:
        return None

    def run(self, job: Job) -> Result:
        self.jobs.append(job)
        outputs = (np.zeros((len(job.calls), 9, 3, 64, 64), np.float32),)
        if renders(job.artifact):
            calls = [[t[n] for t, n in zip(job.inputs, call, strict=True)] for call in job.calls]
            made = [Render()(*map(torch.from_numpy, call)) + self.off for call in calls]
            outputs = (np.stack([each.numpy() for each in made]),)
        return Result(outputs, 1.0, 1.0, (2.0,) * job.runs, 1.0, 1)


@pytest.fixture
def folder(small_student: Path, tmp_path: Path, make_run: MakeRun) -> Path:
    make_run(tmp_path, small_student, [STUDENT, RENDERS])
    return tmp_path


@pytest.mark.parametrize("off, status", [(0.0, "pass"), (1e-3, "fail")])
def test_verify_holds_a_file_that_renders_against_the_module(
    off: float, status: str, folder: Path
) -> None:
    rows = verify_run(folder, InProcess(off), Verification(positions=[4]))
    (row,) = [row for row in rows if row.artifact == RENDERS]
    assert (row.status, row.threshold_db, row.gate) == (status, 80.0, "fp32 file, executed")
    assert "positions" not in row.why
    if status == "fail":
        assert row.psnr_db == pytest.approx(66.0, abs=0.5)


def test_what_is_rendered_differs_from_tile_to_tile_and_by_setting(small_student: Path) -> None:
    check = render_check(load_student(small_student))
    (made,) = check.parents["student"]
    assert len(made) == len(check.calls) == len(TILES) * len(SETTINGS)
    assert tuple(table.shape[1:] for table in check.inputs) == FIXED
    photos = check.inputs[0]
    for n, m in [(0, 1), (0, 2), (2, 4)]:
        assert np.abs(made[n] - made[m]).max() > 0.01
    assert np.abs(made - photos).max(axis=(1, 2, 3, 4)).min() > 0.01
    assert (photos[0] != 0).any(axis=1).all()  # of the first tile nothing is added
    assert not photos[-1][..., -1, -1].any()  # of the last one, what is beyond the photo


def test_bench_times_a_tile_beside_stacks(folder: Path) -> None:
    device = InProcess()
    rows = bench_run(folder, device, Bench(reference=None, runs=4, warmup=0))
    found = {row.artifact: row for row in rows}
    assert list(found) == ["student", STUDENT, RENDERS, "onnx/nine-frames-fp32"]
    assert (found[RENDERS].status, found[RENDERS].runs) == ("measured", 4)
    jobs = [job for job in device.jobs if renders(job.artifact)]
    assert all(tuple(t.shape[1:] for t in job.inputs) == FIXED for job in jobs)
    assert len(jobs) == 1  # after the rounds, each of which starts a process
    assert all(len(job.inputs) == 2 for job in device.jobs if job not in jobs)
    assert [each.artifact for each in ratios(rows)] == ["student", STUDENT]


def test_a_run_is_proven_only_with_what_renders(folder: Path) -> None:
    run = MeasuredRun(folder, load_manifest(folder))
    gates = verify_run(folder, InProcess(), Verification(positions=[4]))
    others = [row for row in gates if row.artifact != RENDERS]
    said = f"{RENDERS} was executed on no device"
    assert any(said in each for each in doubts(MeasuredRun(run.folder, run.manifest, gates=others)))
    assert not any(said in each for each in doubts(MeasuredRun(folder, run.manifest, gates=gates)))
