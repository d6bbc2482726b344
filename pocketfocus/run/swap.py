"""Files and folders put in the place of others in one step, so that a name is never missing."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

HERE = -100  # AT_FDCWD: paths are relative to the current folder
EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
NOT_THERE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV}  # in this file system
OLD = ".old"  # ends the name of what had to make room first


def exchange(one: Path, other: Path) -> bool:
    """Exchange what two names of a file system stand for; False where the system cannot."""
    library, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(one), os.fsencode(other))
    if sys.platform.startswith("linux") and hasattr(library, "renameat2"):
        failed = library.renameat2(HERE, names[0], HERE, names[1], ctypes.c_uint(EXCHANGE))
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, ctypes.c_uint(EXCHANGE))
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in NOT_THERE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def put(new: Path, path: Path) -> None:
    """Let `path` stand for `new`; what it stood for before goes, or stays in the folder of `new`.

    Where the system cannot exchange folders, the older one makes room first: its name is then free
    for a moment, and `recover` puts it back where that moment was the last.
    """
    both = path.exists() and not path.is_symlink() and (path.is_dir() or new.is_dir())
    if both and exchange(new, path):
        return
    if both:
        os.rename(path, new.with_name(f"{new.name}{OLD}"))
    os.replace(new, path)


def recover(scratch: Path, folder: Path) -> None:
    """Put back into `folder` what had made room for something that never came."""
    for old in scratch.glob(f"*{OLD}"):
        path = folder / old.name.removesuffix(OLD)
        if not os.path.lexists(path):
            os.rename(old, path)
