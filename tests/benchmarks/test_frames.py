"""Nine frames of a photo by two files: the pictures of `refocus`, and a row of bench.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.benchmarks.latency import Bench, bench_run, chosen_pairs, ratios
from pocketfocus.benchmarks.rendering import BUNDLED, photo_inputs
from pocketfocus.benchmarks.samples import read_times
from pocketfocus.export.open import open_model
from pocketfocus.mobile_harness.device import Job, JobError
from pocketfocus.mobile_harness.host import Host
from pocketfocus.models.student import load_student
from pocketfocus.photos.refocusing import refocused
from pocketfocus.run.constants import FRAMES, FRAMES_SIDE
from pocketfocus.run.manifest import Artifact, load_manifest
from pocketfocus.run.results import BenchRow
from pocketfocus.run.rows import read_rows
from tests.benchmarks.test_latency import Scripted
from tests.conftest import Exported

pytestmark = pytest.mark.usefixtures("one_process")

FILE, RENDER, PAIR = "onnx/student-fp32.onnx", "onnx/render-fp32.onnx", "onnx/nine-frames-fp32"
MakeRun = Callable[..., None]


@pytest.fixture(scope="module")
def run(exported: Exported) -> Path:
    return exported([FILE, RENDER])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A portrait photo of no size that tiles fit into."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (31, 23, 3), np.uint8)
    image = Image.fromarray(pixels).resize((230, 317), Image.Resampling.BICUBIC)
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_frames_of_two_files_are_the_pictures_of_refocus(run: Path, photo: Path) -> None:
    inputs = photo_inputs([photo])
    job = Job(str(run / FILE), "onnx", inputs, [(0, 2)], runs=2, threads=1, want_outputs=True)
    result = Host().frames(job, str(run / RENDER))
    assert result.outputs is not None and len(result.times_ms) == 2
    (frames,) = result.outputs
    assert frames.shape == (1, FRAMES, 3, 317, 230)
    made = refocused(open_model(str(run / FILE)), np.asarray(Image.open(photo)), 2)
    for number in range(FRAMES):
        expected = made.picture(float(number)).transpose(2, 0, 1).astype(np.float32)
        assert np.abs(frames[0, number] - expected).max() <= 1  # a rounding
    assert np.abs(frames[0, 0] - frames[0, 8]).max() > 10
    with pytest.raises(JobError, match=r"student-fp32\.onnx: "):
        Host().frames(replace(job, timeout_s=0.01), str(run / RENDER))


def test_bench_has_a_row_of_nine_frames(run: Path, photo: Path) -> None:
    rows = bench_run(
        run, Host(), Bench(reference=None, runs=3, warmup=0, threads=1, photos=[photo])
    )
    assert read_rows(run / "bench.json", BenchRow) == rows
    found = {row.artifact: row for row in rows}
    assert list(found) == ["student", FILE, RENDER, PAIR]
    row, manifest = found[PAIR], load_manifest(run)
    assert (row.status, row.runs, row.photo, row.precision) == ("measured", 3, (317, 230), "fp32")
    assert row.sha256 == manifest.hashes[PAIR]
    assert row.bytes == sum((run / name).stat().st_size for name in (FILE, RENDER))
    assert row.p50_ms and row.p90_ms and row.p99_ms and row.p50_ms <= row.p90_ms <= row.p99_ms
    assert row.p50_ms > (found[FILE].p50_ms or 0)
    assert (row.peak_rss_mib or 0) > 100
    assert len(read_times(run)[PAIR, "host"][0]) == 3
    assert [each.photo for name, each in found.items() if name != PAIR] == [None] * 3
    assert PAIR not in [each.artifact for each in ratios(rows)]


def test_a_device_that_calls_one_file_at_a_time_says_so(
    small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    make_run(tmp_path, small_student, [FILE, RENDER])
    rows = bench_run(tmp_path, Scripted(), Bench(reference=None, runs=2))
    assert rows[-1].artifact == PAIR
    assert (rows[-1].status, rows[-1].photo) == ("not-run", BUNDLED)
    assert rows[-1].why == "scripted calls one file at a time: see the rows of both"
    assert load_student(tmp_path / "student").photo_size == (64, 64)


def test_of_each_target_one_pair_is_measured(run: Path) -> None:
    """The int8 one, or the first: ten of them would take longer than all else of `bench`."""
    manifest = load_manifest(run)
    render = manifest.render
    assert render is not None
    file, tile = manifest.artifacts[0], render.files[0]

    def artifacts(target: str, *precisions: str) -> list[Artifact]:
        return [
            replace(file, name=f"{target}/{each}", target=target, precision=each)
            for each in precisions
        ]

    both = [*artifacts("onnx", "fp32", "int8", "mixed"), *artifacts("coreml", "fp16", "int4")]
    tiles = [replace(tile, target=target) for target in ("onnx", "coreml")]
    found = chosen_pairs(replace(manifest, artifacts=both, render=replace(render, files=tiles)))
    assert [pair.student.name for pair in found] == ["onnx/int8", "coreml/fp16"]


def test_the_photo_is_as_large_as_nine_frames_are_made_of(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 500), (90, 20, 30)).save(tmp_path / "wide.png")
    assert photo_inputs([tmp_path / "wide.png"])[0].shape == (1, 1, 3, 320, FRAMES_SIDE)
    photo, positions = photo_inputs(None)
    assert photo.shape == (1, 1, 3, *BUNDLED) and positions.shape == (FRAMES, 1, FRAMES)
