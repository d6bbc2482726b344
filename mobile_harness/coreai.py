"""The Core AI check as a device: assets executed by coreai-core's interpreter without Core AI.

It checks what a file's program means, not Apple's kernels: unoptimised and on one thread, its times
are no latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pocketfocus.export.coreai import TARGET as CORE_AI
from pocketfocus.mobile_harness.host import Fallback
from pocketfocus.mobile_harness.options import Options
from pocketfocus.mobile_harness.worker import Measured, Opener, Tables, measure, read_job


def connect(address: str, options: Options) -> tuple[Fallback, ...]:
    """Return the entry of the registry."""
    work, package = f"{__name__}:run_file", (CORE_AI.runtime, "interpreter")
    return (Fallback(CORE_AI.fallback, target=CORE_AI, work=work, package=package),)


def run_file(arguments: Mapping[str, Any], tables: Tables, say: Callable[[str], None]) -> Measured:
    """Do a job whose file the interpreter executes."""
    return measure(interpreter(), read_job(arguments, tables))


def interpreter() -> Opener:
    """Import the interpreter, so that the clock does not see it."""
    import coreai.authoring
    import coreai.runtime  # noqa: F401

    return lambda artifact, threads: CORE_AI.open(Path(artifact), threads)
