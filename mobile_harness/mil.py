"""The MIL check as a device: Core ML files executed by PyTorch where Core ML itself is missing.

It checks what a file's program means, not Apple's kernels; its times are no latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pocketfocus.export.coreml import TARGET as CORE_ML
from pocketfocus.mobile_harness.device import MIL_CHECK
from pocketfocus.mobile_harness.host import Fallback
from pocketfocus.mobile_harness.options import Options
from pocketfocus.mobile_harness.worker import Measured, Opener, Tables, measure, read_job


def connect(address: str, options: Options) -> tuple[Fallback, ...]:
    """Return the entry of the registry."""
    work, package = f"{__name__}:run_file", ("torch", "MIL check")
    return (Fallback(MIL_CHECK, target=CORE_ML, work=work, package=package),)


def run_file(arguments: Mapping[str, Any], tables: Tables, say: Callable[[str], None]) -> Measured:
    """Do a job whose file the MIL check executes."""
    return measure(program_opener(), read_job(arguments, tables))


def program_opener() -> Opener:
    """Import the MIL check, so that the clock does not see it."""
    from pocketfocus.export.coreml.mil.program import open_functions

    return lambda artifact, threads: open_functions(Path(artifact))
