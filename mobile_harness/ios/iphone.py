"""A connected iPhone, through coremltools' own remote device; it needs a Mac with Xcode.

coremltools builds, signs and installs an app that predicts on the phone; this is a thin wrapper.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import finalize

import numpy as np

from pocketfocus.export.coreml import TARGET as CORE_ML
from pocketfocus.export.coreml.write import MAIN, functions, tensors
from pocketfocus.mobile_harness.device import Arrays, Call, Device, Job, JobError, Result
from pocketfocus.mobile_harness.host import done, work_of
from pocketfocus.mobile_harness.ios.mac import units
from pocketfocus.mobile_harness.options import Absent, Options
from pocketfocus.run.errors import UserError, first_line
from pocketfocus.run.processes import Worker
from pocketfocus.run.results import Notes

if TYPE_CHECKING:
    from pocketfocus.mobile_harness.worker import Measured, Tables
    from pocketfocus.run.child import Say

KIND = "iphone"
CALL = f"{__name__}:work"
PREPARED: dict[str, Any] = {}  # by UDID, in the process that calls them


def connect(address: str, options: Options) -> tuple[Device, ...]:
    """Return the first connected iPhone, or that of a name or UDID, or why there is none."""
    reason = CORE_ML.cannot_run()
    if reason is not None:
        return (Absent(KIND, f"an iPhone is reached from a Mac with Xcode: {reason}"),)
    try:
        found = connected()
    except Exception as error:  # devicectl's errors share no public base
        return (Absent(KIND, f"Xcode's devicectl does not answer: {first_line(error)}"),)
    chosen = [each for each in found if not address or address in (each.name, each.udid)]
    if not chosen:
        names = ", ".join(each.name for each in found) or "none"
        return (
            Absent(KIND, f"not connected (Xcode sees: {names}): plug it in and trust this Mac"),
        )
    return (IPhone(chosen[0], options),)


def connected() -> list[Any]:
    """Return the iPhones that Xcode sees, as coremltools' remote devices."""
    from coremltools.models.ml_program.experimental.remote_device import Device as Remote
    from coremltools.models.ml_program.experimental.remote_device import DeviceType

    return list(Remote.get_connected_devices(DeviceType.IPHONE))


@dataclass
class IPhone:
    """One connected iPhone, and the process that calls it: coremltools waits without an end for
    what it starts, which only ends with its process."""

    remote: Any
    options: Options = field(default_factory=Options)
    name: str = KIND
    call: str = CALL
    worker: Worker = field(default_factory=Worker, repr=False)

    def __post_init__(self) -> None:
        finalize(self, self.worker.close)

    def describe(self) -> dict[str, str]:
        """Return name and iOS version; coremltools does not tell the chip."""
        from importlib import metadata

        return {
            "model": self.remote.name,
            "chip": "",
            "os": f"iOS {self.remote.os_version} ({self.remote.os_build_number})",
            "coremltools": metadata.version("coremltools"),
        }

    def why_not(self, target: str) -> str | None:
        """Say that only Core ML packages run."""
        if target == CORE_ML.name:
            return None
        return f"an iPhone runs Core ML packages here, not {target}"

    def run(self, job: Job) -> Result:
        """Predict on the phone; JobError when its app does not build, start or answer in time."""
        order = work_of(job, self.call)
        phone = {"udid": self.remote.udid, "team": self.options.team or ""}
        order = replace(order, arguments={"phone": phone, "job": order.arguments})
        try:
            result = done(self.worker.run, job, order)
        except UserError as error:
            raise JobError(f"{self.name}: {error}") from error
        text: Any = result.notes  # JSON
        return replace(result, notes=None if text is None else Notes.model_validate_json(text))


def work(arguments: Mapping[str, Any], tables: Tables, say: Say) -> Measured:
    """Do a job on an iPhone, in the process that calls it."""
    from pocketfocus.mobile_harness.worker import read_job  # PyTorch, which only this process needs

    job = read_job(arguments["job"], tables)
    result = asyncio.run(executed(job, **arguments["phone"]))
    notes = None if result.notes is None else result.notes.model_dump_json()
    fields = {**vars(result), "notes": notes}
    outputs = fields.pop("outputs") or ()
    return fields, {str(k): table for k, table in enumerate(outputs)}


async def executed(job: Job, udid: str, team: str) -> Result:
    """Load a file on an iPhone, whose app is built and started once a process, and measure it."""
    from coremltools import ComputeUnit
    from coremltools.models.ml_program.experimental import async_wrapper

    if udid not in PREPARED:
        PREPARED[udid] = await prepared(udid, team)
    model = async_wrapper.MLModelAsyncWrapper.from_spec_or_path(
        spec_or_path=job.artifact,
        weights_dir="",
        function_name=function_of(job),
        compute_units=ComputeUnit.ALL,
        device=PREPARED[udid],
    )
    await model.load()
    try:
        return await measure(model, job, tensors(Path(job.artifact)))
    finally:
        await model.unload()


async def prepared(udid: str, team: str) -> Any:
    """Return an iPhone with coremltools' app; JobError where Xcode no longer sees it."""
    from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials

    remote = next((each for each in connected() if each.udid == udid), None)
    if remote is None:
        raise JobError("it was unplugged: plug it in")
    credentials = AppSigningCredentials(development_team=team)
    return await remote.prepare_for_model_debugging(credentials=credentials)


def function_of(job: Job) -> str | None:
    """Return the function of a package that takes the photos of a job; None where it has one
    function alone."""
    found = functions(Path(job.artifact))
    names = {shapes[0]: name for name, shapes in found.items()}
    return names.get(job.inputs[0].shape[1:], MAIN) if len(found) > 1 else None


async def measure(model: Any, job: Job, names: tuple[list[str], list[str]]) -> Result:
    """Make the calls of a job with a loaded model; times are those that the phone reports."""

    async def predict(call: Call) -> tuple[Arrays, float]:
        rows = [table[row] for table, row in zip(job.inputs, call, strict=True)]
        made = await model.predict(dict(zip(names[0], rows, strict=True)))
        outputs = tuple(np.asarray(made[name], np.float32) for name in names[1])
        return outputs, milliseconds(model.last_predict_duration_in_nano_seconds)

    first, first_ms = await predict(job.calls[0])
    endless, times = itertools.cycle(job.calls), job.begun(first_ms)
    for _ in range(0 if times else job.warmup):
        await predict(next(endless))
    while not job.is_spent(times):
        times.append((await predict(next(endless)))[1])
    outputs = None
    if job.want_outputs:
        made = [first, *[(await predict(call))[0] for call in job.calls[1:]]]
        outputs = tuple(np.stack(rows) for rows in zip(*made, strict=True))
    plan = units(await model.retrieve_compute_plan()) if job.runs else None
    notes = None if plan is None else Notes(compute_plan=plan)
    load_ms = milliseconds(model.load_duration_in_nano_seconds)
    return Result(outputs, load_ms, first_ms, tuple(times), None, None, notes)


def milliseconds(nanoseconds: int | None) -> float:
    """Raise JobError when the phone told no duration."""
    if nanoseconds is None:
        raise JobError("the iPhone told no duration of a load or prediction")
    return nanoseconds / 1e6
