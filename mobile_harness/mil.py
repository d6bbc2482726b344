"""The MIL check as a device: Core ML files executed by PyTorch where Core ML itself is missing.

It checks what a file's program means, not Apple's kernels; its times are no latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from pocketfocus.export.coreml import TARGET as CORE_ML
from pocketfocus.export.targets import Target
from pocketfocus.mobile_harness.device import MIL_CHECK
from pocketfocus.mobile_harness.host import Fallback
from pocketfocus.mobile_harness.options import Options
from pocketfocus.mobile_harness.worker import Measured, Opener, Runner, Tables, measure, read_job


@dataclass(frozen=True)
class MilCheck(Fallback):
    """This host, with the MIL check in place of Core ML."""

    name: str = MIL_CHECK
    target: ClassVar[Target] = CORE_ML
    work: ClassVar[str] = f"{__name__}:run_file"

    def describe(self) -> dict[str, str]:
        """Return the host's facts; PyTorch executes what coremltools only reads."""
        about = super().describe()
        return {**about, CORE_ML.runtime: f"torch {about['torch']} (MIL check)"}


def connect(address: str, options: Options) -> tuple[MilCheck, ...]:
    """Return the entry of the registry."""
    return (MilCheck(),)


def run_file(arguments: Mapping[str, Any], tables: Tables, say: Callable[[str], None]) -> Measured:
    """Do a job whose file the MIL check executes."""
    return measure(program_opener(), read_job(arguments, tables))


def program_opener() -> Opener:
    """Import the MIL check, so that the clock does not see it."""
    from pocketfocus.export.coreml.mil.program import load_functions, usual

    def open_program(artifact: str, threads: int) -> Runner:
        programs = load_functions(Path(artifact))

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            program = programs.get(tuple(inputs[0].shape)) or usual(programs)
            return tuple(program(dict(zip(program.inputs, inputs, strict=True))).values())

        return run

    return open_program
