"""This process's memory: how much it took at most, and freed memory kept for reuse."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

# mallopt's parameters, their names in the environment, and values: nothing by mmap, never trimmed,
# grown by 256 MiB at a time
_KEPT = (
    (-4, "MALLOC_MMAP_MAX_", 0),
    (-1, "MALLOC_TRIM_THRESHOLD_", 2**31 - 1),
    (-2, "MALLOC_TOP_PAD_", 2**28),
)
KEEPS_MEMORY = {name: str(value) for _, name, value in _KEPT}
"""What does the same to a process that is started with it in its environment."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors; True where glibc could be asked to.

    By default glibc maps every large tensor anew and the kernel clears its pages. On a virtual
    machine that was a third of the time of a training step and half that of decoding a stack.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(kind, value) == 1 for kind, _, value in _KEPT)


def peak_mib() -> float:
    """Return the peak resident memory of this process since it started (MiB), interpreter and the
    mapped pages of files included.

    On Linux from VmHWM: ru_maxrss also counts the parent's memory at the moment of the fork.
    """
    found = _status("VmHWM")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024**2 if sys.platform == "darwin" else peak / 1024


def swapped_mib() -> float:
    """Return how much of this process is swapped out (MiB); 0 where the system does not say."""
    return _status("VmSwap") or 0.0


def _status(field: str) -> float | None:
    """Return a figure of /proc/self/status in MiB, None where there is none."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return None
