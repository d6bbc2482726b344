"""Mac and iPhone up to coremltools' own calls: only what needs macOS is replaced."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
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

    async def broken(**_: Any) -> None:
        raise ValueError("signing failed\nlong log")

    remote = SimpleNamespace(
        name="Mine", os_version="18.1", os_build_number="22B", prepare_for_model_debugging=broken
    )
    device = iphone.IPhone(remote, Options(team="T"))
    assert device.describe()["os"] == "iOS 18.1 (22B)"
    assert "not onnx" in (device.why_not("onnx") or "")
    with pytest.raises(JobError, match=r"^iphone: signing failed$"):
        device.run(job(runs=1))
