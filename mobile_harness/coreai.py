"""The Core AI check as a device: assets executed by coreai-core's interpreter without Core AI.

It checks what a file's program means, not Apple's kernels: unoptimised and on one thread, its times
are no latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pocketfocus.export.coreai import TARGET as CORE_AI
from pocketfocus.export.targets import Target
from pocketfocus.mobile_harness.host import Fallback
from pocketfocus.mobile_harness.options import Options
from pocketfocus.mobile_harness.worker import Measured, Opener, Tables, measure, read_job


@dataclass(frozen=True)
class CoreAiCheck(Fallback):
    """This host, with coreai-core's interpreter in place of Core AI."""

    name: str = CORE_AI.fallback
    target: ClassVar[Target] = CORE_AI
    work: ClassVar[str] = f"{__name__}:run_file"

    def describe(self) -> dict[str, str]:
        """Return the host's facts; the interpreter executes what Core AI would."""
        about = super().describe()
        if version := about.get(CORE_AI.runtime):
            about[CORE_AI.runtime] = f"{CORE_AI.runtime} {version} (interpreter)"
        return about


def connect(address: str, options: Options) -> tuple[CoreAiCheck, ...]:
    """Return the entry of the registry."""
    return (CoreAiCheck(),)


def run_file(arguments: Mapping[str, Any], tables: Tables, say: Callable[[str], None]) -> Measured:
    """Do a job whose file the interpreter executes."""
    return measure(interpreter(), read_job(arguments, tables))


def interpreter() -> Opener:
    """Import the interpreter, so that the clock does not see it."""
    import coreai.authoring
    import coreai.runtime  # noqa: F401

    from pocketfocus.export.coreai.write import executed

    return lambda artifact, threads: executed(Path(artifact))
