"""The command lines of Android's `adb`, and its errors as one line each."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pocketfocus.mobile_harness.device import STOPPED, JobError
from pocketfocus.run.errors import UserError

GONE = re.compile(r"device '.*' not found|no devices/emulators|device offline|closed$", re.M)
LOOK_S = 0.2  # between looks whether what waits for a phone was stopped
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


def call(
    *arguments: str, timeout_s: float | None = 60.0, tidies: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run adb; JobError when it does not end in time, KeyboardInterrupt once `STOPPED` is set.

    What `tidies` is done nevertheless, and a terminal's Ctrl-C comes to no adb.
    """
    command, began = ["adb", *arguments], time.monotonic()
    check_not_stopped(tidies)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as program:
        try:
            while time.monotonic() - began < (math.inf if timeout_s is None else timeout_s):
                with suppress(subprocess.TimeoutExpired):
                    said = program.communicate(timeout=LOOK_S)
                    return subprocess.CompletedProcess(command, program.returncode, *said)
                check_not_stopped(tidies)
            raise JobError(f"adb {arguments[-1][:60]} did not end within {timeout_s:g} s")
        except BaseException:
            program.kill()
            raise


def check_not_stopped(tidies: bool) -> None:
    """Raise KeyboardInterrupt where this thread's phone is to be left, unless it `tidies` it."""
    if STOPPED.is_set() and not tidies:
        raise KeyboardInterrupt


def serials() -> dict[str, str]:
    """Return the phones that adb lists, each with its state (`device` when it can be used)."""
    listed = call("devices")
    if listed.returncode != 0:
        raise UserError(f"adb devices failed: {last_line(listed)}")
    rows = (line.split(None, 1) for line in listed.stdout.splitlines() if "\t" in line)
    return {serial: state.strip() for serial, state in rows}


@dataclass(frozen=True)
class Adb:
    """One phone, by its serial. Every method raises JobError when the phone is gone.

    Attributes:
        serial: as adb lists it.
        tidies: see `call`.
    """

    serial: str
    tidies: bool = False

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
        done = call("-s", self.serial, *arguments, timeout_s=timeout_s, tidies=self.tidies)
        if done.returncode == 0:
            return done.stdout
        if GONE.search(done.stderr + done.stdout):  # push says it on standard output
            raise JobError(f"phone {self.serial} was unplugged ({last_line(done)}): plug it in")
        raise JobError(f"phone {self.serial}: adb {arguments[0]} failed: {last_line(done)}")


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command said last."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
