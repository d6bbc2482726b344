"""Mac and iPhone up to coremltools' own calls: only what needs macOS is replaced."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from pocketfocus.mobile_harness.device import Job, JobError
from pocketfocus.mobile_harness.ios import iphone, mac
from pocketfocus.mobile_harness.options import Options
from pocketfocus.run.results import Notes

TABLES = (np.zeros((1, 1, 3, 8, 8), np.float32), np.eye(9, dtype=np.float32)[:, None])
NAMES = (["photo", "position"], ["stack"])


class MLNeuralEngineComputeDevice:
    """Named as coremltools names it."""


class MLCPUComputeDevice:
    """Named as coremltools names it."""


class Plan:
    """An MLComputePlan of three operators and a constant, which has no unit."""

    def __init__(self) -> None:
        engine, processor = MLNeuralEngineComputeDevice(), MLCPUComputeDevice()
        self.usage = {"conv": engine, "mul": engine, "gather": processor, "const": None}
        block = SimpleNamespace(operations=list(self.usage))
        program = SimpleNamespace(functions={"main": SimpleNamespace(block=block)})
        self.model_structure = SimpleNamespace(program=program)

    def get_compute_device_usage_for_mlprogram_operation(self, operation: str) -> Any:
        unit = self.usage[operation]
        return unit and SimpleNamespace(preferred_compute_device=unit)


class Model:
    """What coremltools' MLModelAsyncWrapper offers, predicting the number of the call."""

    load_duration_in_nano_seconds: int | None = 5_000_000

    def __init__(self) -> None:
        self.calls: list[int] = []

    async def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        assert inputs["photo"].shape == (1, 3, 8, 8)
        assert inputs["position"].sum() == 1
        self.calls.append(int(inputs["position"].argmax()))
        return {"stack": np.full((9, 3, 8, 8), self.calls[-1], np.float16)}

    @property
    def last_predict_duration_in_nano_seconds(self) -> int:
        return len(self.calls) * 1_000_000

    async def retrieve_compute_plan(self) -> Plan:
        return Plan()


REMOTE = SimpleNamespace(name="Mine", udid="1", os_version="18.1", os_build_number="22B")
SCRIPT = """
import asyncio, os, subprocess
from dataclasses import replace
from pocketfocus.mobile_harness.ios import iphone
work = iphone.work

async def executed(job, udid, team):
    assert (udid, team) == ("1", "T")
"""
MEASURES = """
    from tests.mobile_harness.ios.test_apple import Model, NAMES
    return replace(await iphone.measure(Model(), job, NAMES), peak_rss_mib=os.getpid())
iphone.executed = executed
"""
FAILS = """
    raise ValueError("signing failed\\nlong log")
iphone.executed = executed
"""
HANGS = """
    if not job.runs:
        return iphone.Result(None, 0.0, 0.0, (), None, None)
    def call():
        program = subprocess.Popen(["sleep", "600"])
        open("{started}", "w").write(str(program.pid))
        program.wait()
    await asyncio.get_event_loop().run_in_executor(None, call)
iphone.executed = executed
"""


def job(**fields: Any) -> Job:
    return Job("a.mlpackage", "coreml", TABLES, [(0, 2), (0, 7)], **fields)


def test_coremltools_has_what_the_wrappers_call() -> None:
    from coremltools.models.compute_plan import MLComputePlan
    from coremltools.models.ml_program.experimental import async_wrapper, remote_device

    device, wrapper = remote_device.Device, async_wrapper.MLModelAsyncWrapper
    assert remote_device.DeviceType.IPHONE
    assert {"name", "udid", "os_version", "os_build_number"} <= set(device.__annotations__)
    for function, named in (
        (device.get_connected_devices, {"device_type"}),
        (device.prepare_for_model_debugging, {"credentials"}),
        (remote_device.AppSigningCredentials, {"development_team"}),
        (
            wrapper.from_spec_or_path,
            {"spec_or_path", "weights_dir", "compute_units", "device"},
        ),
        (MLComputePlan.load_from_path, {"path", "compute_units"}),
    ):
        assert named <= set(inspect.signature(function).parameters), function
    for name in ("load", "predict", "unload", "retrieve_compute_plan"):
        assert inspect.iscoroutinefunction(getattr(wrapper, name)), name
    for name in ("load_duration_in_nano_seconds", "last_predict_duration_in_nano_seconds"):
        assert hasattr(wrapper, name)


def test_operators_are_counted_by_unit() -> None:
    assert mac.units(Plan()) == {"Neural Engine": 2, "CPU": 1}


def test_an_iphones_own_durations_are_the_times() -> None:
    model = Model()
    result = asyncio.run(iphone.measure(model, job(warmup=1, runs=3, want_outputs=True), NAMES))
    assert (result.load_ms, result.first_ms) == (5.0, 1.0)
    assert result.times_ms == (3.0, 4.0, 5.0)
    assert result.outputs is not None
    (stacks,) = result.outputs
    assert stacks.dtype == np.float32
    assert [stack[0, 0, 0, 0] for stack in stacks] == [2, 7]
    assert result.peak_rss_mib is None
    assert result.notes == Notes(compute_plan={"Neural Engine": 2, "CPU": 1})


def test_an_iphone_without_durations_or_app_is_one_line() -> None:
    model = Model()
    model.load_duration_in_nano_seconds = None
    with pytest.raises(JobError, match="told no duration"):
        asyncio.run(iphone.measure(model, job(runs=1), NAMES))

    device = iphone.IPhone(REMOTE, Options(team="T"))
    assert device.describe()["os"] == "iOS 18.1 (22B)"
    assert "not onnx" in (device.why_not("onnx") or "")


def in_a_process(folder: Path, body: str) -> iphone.IPhone:
    """An iPhone whose process executes this in place of coremltools' calls."""
    path = folder / "phone.py"
    path.write_text(f"{SCRIPT}{body}")
    return iphone.IPhone(REMOTE, Options(team="T"), call=f"{path}:work")


def test_a_job_on_an_iphone_is_done_by_a_process_that_stays(tmp_path: Path) -> None:
    device = in_a_process(tmp_path, MEASURES)
    results = [device.run(job(runs=2, want_outputs=True)) for _ in range(2)]
    for result in results:
        assert (result.load_ms, len(result.times_ms)) == (5.0, 2)
        assert result.outputs is not None
        assert [stack[0, 0, 0, 0] for stack in result.outputs[0]] == [2, 7]
        assert result.notes == Notes(compute_plan={"Neural Engine": 2, "CPU": 1})
    pids = [result.peak_rss_mib for result in results]
    assert pids[0] == pids[1] != os.getpid()


def test_an_iphone_without_its_app_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^iphone: a.mlpackage: ValueError: signing failed$"):
        in_a_process(tmp_path, FAILS).run(job(runs=1))


def test_an_iphone_that_was_unplugged_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iphone, "connected", list)
    arguments = {"job": job(runs=1).arguments(), "phone": {"udid": "1", "team": "T"}}
    tables = {str(k): table for k, table in enumerate(TABLES)}
    with pytest.raises(JobError, match="unplugged: plug it in"):
        iphone.work(arguments, tables, lambda line: None)


def test_what_an_iphone_waits_for_ends_with_the_limit_of_a_job(tmp_path: Path) -> None:
    """As coremltools waits: in an executor's thread, for a program, without a limit."""
    started = tmp_path / "started"
    device = in_a_process(tmp_path, HANGS.format(started=started))
    device.run(job())  # which starts the process
    began = time.monotonic()
    with pytest.raises(JobError, match="did not finish within 4 s and was stopped"):
        device.run(job(runs=1, timeout_s=4.0))
    assert time.monotonic() - began < 60
    (pid,) = started.read_text().split()
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(int(pid)).wait(30)
        psutil.Process(int(pid))
