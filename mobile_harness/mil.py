"""The MIL check as a device: Core ML files executed by PyTorch where Core ML itself is missing.

It checks what a file's program means, not Apple's kernels; its times are no latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketfocus.export.coreml import TARGET as CORE_ML
from pocketfocus.mobile_harness.device import MIL_CHECK
from pocketfocus.mobile_harness.host import Host
from pocketfocus.mobile_harness.options import Options
from pocketfocus.mobile_harness.worker import Measured, Opener, Runner, Tables, measure, read_job


@dataclass(frozen=True)
class MilCheck(Host):
    """This host, with the MIL check in place of Core ML."""

    name: str = MIL_CHECK

    def describe(self) -> dict[str, str]:
        """Return the host's facts; PyTorch executes what coremltools only reads."""
        about = super().describe()
        return {**about, CORE_ML.runtime: f"torch {about['torch']} (MIL check)"}

    def why_not(self, target: str) -> str | None:
        """Return why not: coremltools is missing; other targets are the host's."""
        return CORE_ML.cannot_write() if target == CORE_ML.name else super().why_not(target)

    def call(self, target: str) -> str:
        """Take the MIL check for Core ML files; other targets are the host's."""
        return f"{__name__}:run_file" if target == CORE_ML.name else super().call(target)


def connect(address: str, options: Options) -> tuple[MilCheck, ...]:
    """Return the entry of the registry."""
    return (MilCheck(),)


def run_file(arguments: Mapping[str, Any], tables: Tables, say: Callable[[str], None]) -> Measured:
    """Do a job whose file the MIL check executes."""
    return measure(program_opener(), read_job(arguments, tables))


def program_opener() -> Opener:
    """Import the MIL check, so that the clock does not see it."""
    from pocketfocus.export.coreml.mil.program import load_program

    def open_program(artifact: str, threads: int) -> Runner:
        program = load_program(Path(artifact))
        names = tuple(program.inputs)
        return lambda *inputs: tuple(program(dict(zip(names, inputs, strict=True))).values())

    return open_program
