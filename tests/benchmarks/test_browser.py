"""What a browser sends is judged for what it is: a few positions, and every file that was asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketfocus.benchmarks.browser import BrowserJudge
from pocketfocus.benchmarks.measured import positions_of
from pocketfocus.benchmarks.verify import VERIFY_FILE
from pocketfocus.mobile_harness.web.files import Served
from pocketfocus.mobile_harness.web.measurement import Measurement
from pocketfocus.run.manifest import load_manifest
from pocketfocus.run.results import VerifyRow
from pocketfocus.run.rows import read_rows

ONNX = "onnx/student-int8.onnx"


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
