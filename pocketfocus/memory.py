"""Freed memory kept for reuse, where getting it anew from the system is slow."""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters and values: nothing by mmap, never trimmed, grown by 256 MiB at a time
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28))


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors; True where glibc could be asked to.

    By default glibc maps every large tensor anew and the kernel clears its pages. On a virtual
    machine that was a third of the time of a training step and half that of decoding a stack.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in _KEPT)
