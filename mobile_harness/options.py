"""What a user may say about a device beyond its name; and a device that is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pocketfocus.mobile_harness.device import Job, JobError, Result


@dataclass(frozen=True)
class Options:
    """Settings of devices; each reads those that concern it.

    Attributes:
        runner: ExecuTorch's `executor_runner` for the phone, for Android.
        cool_c: battery temperature (degrees Celsius) below which a measurement begins.
        cool_wait_s: seconds to wait for it before giving up.
        team: development team that signs the app of coremltools' remote device, for an iPhone.
        visit_s: seconds to wait for a browser's next row.
    """

    runner: Path | None = None
    cool_c: float = 35.0
    cool_wait_s: float = 900.0
    team: str | None = None
    visit_s: float = 1800.0


@dataclass(frozen=True)
class Absent:
    """A device that is not reachable: every file is `not-run` there, for this reason."""

    name: str
    reason: str

    def describe(self) -> dict[str, str]:
        """Return nothing: nothing is known of it."""
        return {}

    def why_not(self, target: str) -> str | None:
        """Return the reason, whatever the target."""
        return self.reason

    def run(self, job: Job) -> Result:
        """Raise JobError: there is nothing to run on."""
        raise JobError(f"{self.name}: {self.reason}")
