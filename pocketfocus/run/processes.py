"""Work in a Python process of its own, which finds this very package."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pocketfocus


def run_module(
    module: str, *arguments: str, captured: bool = True, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a module of this very package to its end, its output `captured` or passed on.

    Raises subprocess.TimeoutExpired after `timeout_s`; then, and on Ctrl-C, the process is killed.
    """
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=captured,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def _environment() -> dict[str, str]:
    """The worker finds this very package first, and nothing in the current folder (`-P`)."""
    root = str(Path(pocketfocus.__file__).parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([root, inherited]) if inherited else root
    return {**os.environ, "PYTHONPATH": path}


def death(ended: subprocess.CompletedProcess[str]) -> str:
    """How a worker ended that left no result, in one phrase."""
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"died of {name}{hint}"
    lines = (ended.stderr or "").strip().splitlines()
    return f"ended with code {ended.returncode}: {lines[-1] if lines else 'it said nothing'}"
