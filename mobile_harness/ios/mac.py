"""This Mac: Core ML's own prediction, and which unit (Neural Engine, GPU, CPU) takes each layer."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketfocus.export.coreml import TARGET as CORE_ML
from pocketfocus.export.coreml.write import MAIN
from pocketfocus.mobile_harness.device import Device, Job, Result
from pocketfocus.mobile_harness.host import Host
from pocketfocus.mobile_harness.options import Absent, Options
from pocketfocus.run.results import Notes

UNITS = {
    "MLNeuralEngineComputeDevice": "Neural Engine",
    "MLGPUComputeDevice": "GPU",
    "MLCPUComputeDevice": "CPU",
}


@dataclass(frozen=True)
class Mac(Host):
    """The Mac pocketfocus runs on; its rows carry Core ML's compute plan."""

    name: str = "mac"

    def describe(self) -> dict[str, str]:
        """Return the host's facts, with macOS's own version."""
        return {**super().describe(), "os": f"macOS {platform.mac_ver()[0]}"}

    def run(self, job: Job) -> Result:
        """Do as the host does, in a fresh process; timed Core ML files also tell their plan."""
        result = super().run(job)
        if job.target != CORE_ML.name or not job.runs:
            return result
        return replace(result, notes=Notes(compute_plan=compute_plan(job.artifact)))


def connect(address: str, options: Options) -> tuple[Device, ...]:
    """Return this Mac, or why it is none."""
    reason = CORE_ML.cannot_run()
    return (Absent("mac", reason) if reason else Mac(),)


def compute_plan(package: str) -> dict[str, int]:
    """Return how many of a package's operators Core ML would give to each unit."""
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    compiled = ct.models.utils.compile_model(str(Path(package)))
    return units(MLComputePlan.load_from_path(compiled, compute_units=ct.ComputeUnit.ALL))


def units(plan: Any) -> dict[str, int]:
    """Count the operators of an MLComputePlan's usual function by unit; constants, which nothing
    executes, have none."""
    found = plan.model_structure.program.functions
    function = found.get(MAIN) or next(iter(found.values()))
    usages = [
        plan.get_compute_device_usage_for_mlprogram_operation(operation)
        for operation in function.block.operations
    ]
    kinds = (type(usage.preferred_compute_device).__name__ for usage in usages if usage)
    return dict(Counter(UNITS.get(kind, kind) for kind in kinds))
