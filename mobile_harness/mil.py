"""The MIL check as a device: Core ML files executed by PyTorch where Core ML itself is missing.

It checks what a file's program means, not Apple's kernels; its times are no latencies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pocketfocus.export.targets import get_target
from pocketfocus.mobile_harness.device import MIL_CHECK, Job, Result
from pocketfocus.mobile_harness.host import Host
from pocketfocus.mobile_harness.options import Options

COREML = "coreml"


@dataclass(frozen=True)
class MilCheck(Host):
    """This host, with the MIL check in place of Core ML."""

    name: str = "mil-check"

    def describe(self) -> dict[str, str]:
        """The host's facts; PyTorch executes what coremltools only reads."""
        about = super().describe()
        return {**about, "coremltools": f"torch {about['torch']} (MIL check)"}

    def why_not(self, target: str) -> str | None:
        """Why not: coremltools is missing; other targets are the host's."""
        return get_target(target).cannot_write() if target == COREML else super().why_not(target)

    def run(self, job: Job) -> Result:
        """As the host does, in a fresh process."""
        target = MIL_CHECK if job.target == COREML else job.target
        return super().run(replace(job, target=target))


def connect(address: str, options: Options) -> tuple[MilCheck, ...]:
    """The entry of the registry."""
    return (MilCheck(),)
