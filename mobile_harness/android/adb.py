"""The command lines of Android's `adb`, and its errors as one line each."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pocketfocus.mobile_harness.device import JobError
from pocketfocus.run.errors import UserError
from pocketfocus.run.processes import ended

GONE = re.compile(r"device '.*' not found|no devices/emulators|device offline|closed$", re.M)
STATES = {
    "unauthorized": "it does not trust this computer yet: unlock it and allow USB debugging",
    "offline": "it does not answer: plug it in again",
    "no permissions": "this user may not open its USB port: install Android's udev rules",
}


def missing() -> str | None:
    """Return why there is no adb; None when there is one."""
    if shutil.which("adb"):
        return None
    return "adb is not installed: apt-get install adb, or Android's platform-tools"


def call(*arguments: str, timeout_s: float | None = 60.0) -> subprocess.CompletedProcess[str]:
    """Run adb; JobError when it does not end in time."""
    try:
        return ended(["adb", *arguments], timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise JobError(f"adb {arguments[-1][:60]} did not end within {timeout_s:g} s") from None


def serials() -> dict[str, str]:
    """Return the phones that adb lists, each with its state (`device` when it can be used)."""
    listed = call("devices")
    if listed.returncode != 0:
        raise UserError(f"adb devices failed: {last_line(listed)}")
    rows = (line.split(None, 1) for line in listed.stdout.splitlines() if "\t" in line)
    return {serial: state.strip() for serial, state in rows}


@dataclass(frozen=True)
class Adb:
    """One phone, by its serial. Every method raises JobError when the phone is gone."""

    serial: str

    def shell(self, command: str, timeout_s: float | None = 60.0) -> str:
        """Return the output of a shell command; JobError when its exit code is not 0."""
        return self._checked("shell", command, timeout_s=timeout_s)

    def push(self, source: Path, target: str) -> None:
        """Copy a file to the phone."""
        self._checked("push", str(source), target, timeout_s=600.0)

    def pull(self, source: str, target: Path) -> None:
        """Copy a file from the phone."""
        self._checked("pull", source, str(target), timeout_s=600.0)

    def _checked(self, *arguments: str, timeout_s: float | None) -> str:
        done = call("-s", self.serial, *arguments, timeout_s=timeout_s)
        if done.returncode == 0:
            return done.stdout
        if GONE.search(done.stderr + done.stdout):  # push says it on standard output
            raise JobError(f"phone {self.serial} was unplugged ({last_line(done)}): plug it in")
        raise JobError(f"phone {self.serial}: adb {arguments[0]} failed: {last_line(done)}")


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command said last."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
