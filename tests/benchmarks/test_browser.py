"""What a browser sends is judged for what it is: a few positions, and every file that was asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.benchmarks import browser
from pocketfocus.benchmarks.browser import LEFT, BrowserJudge, visited
from pocketfocus.benchmarks.gates import unjudged
from pocketfocus.benchmarks.latency import BENCH_FILE, unmeasured
from pocketfocus.benchmarks.measured import positions_of
from pocketfocus.benchmarks.verify import VERIFY_FILE
from pocketfocus.cli import main
from pocketfocus.mobile_harness.options import Options
from pocketfocus.mobile_harness.web.files import Served
from pocketfocus.mobile_harness.web.measurement import Measurement
from pocketfocus.run.manifest import load_manifest
from pocketfocus.run.results import BenchRow, VerifyRow
from pocketfocus.run.rows import read_rows
from tests.benchmarks.rows import bench_row, verify_row
from tests.conftest import Exported

ONNX, OTHER = "onnx/student-int8.onnx", "onnx/student-fp32.onnx"


@pytest.fixture
def judge(small_student: Path, tmp_path: Path, make_run: Callable[..., None]) -> BrowserJudge:
    make_run(tmp_path, small_student, [ONNX])
    manifest = load_manifest(tmp_path)
    return BrowserJudge(Served(tmp_path, manifest, {a.name: a for a in manifest.artifacts}))


def sent(judge: BrowserJudge) -> Measurement:
    file = judge.served.artifacts[ONNX]
    return Measurement.model_validate(
        {
            "artifact": file.name,
            "sha256": file.sha256,
            "backend": "wasm",
            "threads": 1,
            "runtime": "onnxruntime-web 1",
            "phone": {"name": "A", "os": "B", "browser": "C"},
            "load_ms": 1.0,
            "first_ms": 1.0,
            "times_ms": [1.0],
        }
    )


@pytest.mark.parametrize(("times", "status"), [(1.0, "pass"), (0.5, "fail")])
def test_a_row_says_of_which_positions_it_is(
    times: float, status: str, judge: BrowserJudge
) -> None:
    parent, *_ = judge.parents["student"]
    row = judge.judge(sent(judge), (np.float32(times) * parent).astype("<f4").tobytes())
    assert row.status == status
    assert positions_of(row) == "0, 4, 8"
    assert read_rows(judge.served.folder / VERIFY_FILE, VerifyRow) == [row]


@pytest.fixture
def both(exported: Exported) -> Path:
    return exported([ONNX, OTHER])


@pytest.mark.parametrize("names", [[ONNX], [ONNX, OTHER]], ids=["one of two", "both"])
def test_files_that_no_browser_sent_are_no_success(
    names: list[str], both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The visit ended before: the phone was put away, or Ctrl-C."""
    about = {"device": "A, C (wasm)", "model": "A"}
    came = [(bench_row(artifact=a, **about), verify_row(artifact=a, **about)) for a in names]
    for rows in (came[:1], came):  # what an earlier visit left is not told any more
        monkeypatch.setattr(browser, "await_visit", lambda *_, rows=rows: rows)
        sent = visited("browser", both, Options(), print)
    left = [OTHER] if len(names) == 1 else []
    for name, kind, found in (
        (BENCH_FILE, BenchRow, sent.bench),
        (VERIFY_FILE, VerifyRow, sent.verify),
    ):
        missing = [row for row in found if row.status == "not-run"]
        assert [(row.artifact, row.device, row.why) for row in missing] == [
            (each, "browser", LEFT) for each in left
        ]
        assert read_rows(both / name, kind) == missing
    said = [f"{each} on browser: {LEFT}" for each in left]
    assert unjudged(sent.verify, each_device=True) == unmeasured(sent.bench) == said


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "--positions", "4"),
        ("verify", "--photos", "PHOTOS"),
        ("bench", "--photos", "PHOTOS"),
        ("bench", "--runs", "7"),
        ("bench", "--threads", "2"),
        ("bench", "--reference", "learn2refocus"),
    ],
)
def test_what_the_page_decides_is_no_option(
    words: tuple[str, ...], judge: BrowserJudge, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(judge.served.folder)
    Image.new("RGB", (64, 64)).save(f"{folder}/photo.png")
    command, option, value = words
    given = value.replace("PHOTOS", folder)
    assert main([command, folder, "--device", "browser:lan", option, given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option} changes nothing with --device browser:lan" in line
