"""Work in a Python process of its own, which finds this very package."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pocketfocus


def own_environment() -> dict[str, str]:
    """The environment of a worker started with `python -P`, which finds this very package first and
    nothing in the current folder."""
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
