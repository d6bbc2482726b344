"""`verify --repeat`: devices whose files do not always give the same are seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pocketfocus.benchmarks.browser import repeat_verdict
from pocketfocus.benchmarks.repeat import BATCH, GROWTH_MIB, REPEAT_FILE, repeated
from pocketfocus.cli.app import main
from pocketfocus.mobile_harness.device import Arrays, Job, JobError, Result
from pocketfocus.mobile_harness.web.measurement import Repeated
from pocketfocus.run.results import VerifyRow
from pocketfocus.run.rows import read_rows

pytestmark = pytest.mark.usefixtures("one_process")

TIMES = BATCH + 3
JOB = Job("a.onnx", "onnx", (np.zeros((1, 2), np.float32),), [(0,)])


class Fake:
    """A device whose n-th call gives `value(n)`, and which holds `mib(calls)`."""

    name = "fake"

    def __init__(self, value: Callable[[int], float], mib: Callable[[int], float | None]) -> None:
        self.value, self.mib, self.count = value, mib, 0

    def describe(self) -> dict[str, str]:
        return {}

    def why_not(self, target: str) -> str | None:
        return None

    def run(self, job: Job) -> Result:
        outputs: Arrays | None = None
        if job.want_outputs:
            made = [self.value(self.count + n) for n in range(len(job.calls))]
            self.count += len(job.calls)
            outputs = (np.array(made, np.float32)[:, None], np.zeros((len(made), 3), np.float32))
        return Result(outputs, 0.0, 0.0, (1.0,) * job.runs, self.mib(job.runs), 1)


@pytest.mark.parametrize(
    ("value", "mib", "status", "said"),
    [
        (lambda n: 1.0, lambda runs: 100.0, "pass", "one result"),
        (lambda n: 1.0, lambda runs: None, "pass", "memory not told"),
        (
            lambda n: float(n == TIMES - 1),
            lambda runs: 100.0,
            "fail",
            f"usual one {TIMES + 1} times",
        ),
        (lambda n: np.nan, lambda runs: 100.0, "fail", "not finite"),
        (lambda n: 1.0, lambda runs: 100 + runs * GROWTH_MIB / 5, "fail", "from 1 to 11 calls"),
    ],
    ids=["alike", "memory unknown", "the last one differs", "NaN", "a leak"],
)
def test_what_differs_is_seen(
    value: Callable[[int], float], mib: Callable[[int], float | None], status: str, said: str
) -> None:
    verdict = repeated(Fake(value, mib), JOB, TIMES)
    assert verdict.status == status
    assert said in verdict.why


def test_a_device_that_dies_is_an_error() -> None:
    class Dying(Fake):
        def run(self, job: Job) -> Result:
            raise JobError("it died")

    verdict = repeated(Dying(lambda n: 1.0, lambda runs: None), JOB, TIMES)
    assert (verdict.status, verdict.why) == ("error", "it died")


def test_the_command(
    exported: Callable[[Sequence[str]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = exported(["onnx/student-int8.onnx", "coreml/student-fp32.mlpackage"])
    capsys.readouterr()
    assert main(["verify", str(run), "--positions", "4", "--repeat", "9"]) == 0
    rows = {row.artifact: row for row in read_rows(run / REPEAT_FILE, VerifyRow)}
    onnx = rows["onnx/student-int8.onnx"]
    assert (onnx.status, onnx.gate, onnx.device) == ("pass", "the same in 9 calls", "host")
    assert "one result" in onnx.why and "MiB" in onnx.why
    assert rows["coreml/student-fp32.mlpackage"].status == "not-run"
    assert "the same in 9 calls" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({}, "pass", "one result, aaaaaaaaaaaa; memory [+]1.0 MiB"),
        ({"grown_mib": None}, "pass", "memory not told"),
        ({"results": {"a" * 64: 8, "b" * 64: 1}}, "fail", "2 different results, .* one 8 times"),
        ({"finite": False}, "fail", "not finite"),
        ({"grown_mib": 2 * GROWTH_MIB}, "fail", "from 1 to 9 calls"),
    ],
)
def test_a_browsers_calls_are_judged_as_those_of_any_device(
    sent: dict[str, object], status: str, said: str
) -> None:
    alike = {"results": {"a" * 64: 9}, "finite": True, "grown_mib": 1.0}
    verdict = repeat_verdict(Repeated.model_validate(alike | sent))
    assert verdict.status == status
    assert re.search(said, verdict.why)


def test_a_page_that_repeats_nothing_is_no_pass() -> None:
    assert repeat_verdict(None).status == "not-run"


def test_it_is_of_verify_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "run", "--repeat", "3", "--locate", "a"]) == 2
    assert "--repeat changes nothing beside --golden" in capsys.readouterr().err
