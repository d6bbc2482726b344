"""Scratch folders that do not outlive their makers for long.

The next start sweeps what a killed process left. Its maker holds a lock on a scratch folder, which
goes with the process, whatever ends it. So a folder of a name that only these have, with the
program's own in it, without a lock, is a leftover.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from pocketfocus.run.swap import exchange, recover

PART = ".part"
OWN = "pocketfocus-"
NAMES = re.compile(rf"(\..*\.{OWN}|{OWN}.+-)[a-z0-9_]{{8}}\.part")  # of scratch folders
SHOWN = 64  # bytes of a file's name, which may be as long as the system takes
COMPLETE = "complete"  # beside a set of files that only have to be moved
SET, REPLACED = "set", "replaced"


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path`, which is deleted in the end, with all that is in it.

    What killed processes left there is swept first, once a process and folder.
    """
    parent = path.parent
    swept(parent.resolve())
    name = os.fsencode(path.name)[:SHOWN].decode(errors="ignore")
    with _locked(f".{name}.{OWN}", parent) as folder:
        yield folder


@contextmanager
def temporary_folder(what: str) -> Iterator[Path]:
    """Yield a folder for temporary files, which is deleted in the end."""
    place = Path(tempfile.gettempdir())
    swept(place)
    with _locked(f"{OWN}{what}-", place) as folder:
        yield folder


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Let libraries put their temporary files into a folder, and leave there what they forget."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@cache
def swept(folder: Path) -> None:
    """Sweep a folder, once a process."""
    sweep(folder)


def sweep(folder: Path, deeper: bool = False) -> None:
    """Delete scratch folders whose makers are gone, after what they hold has been put right: an
    older file or folder whose successor never came returns, a complete set of files is moved.

    With `deeper`, in the folders in it too. What cannot be deleted stays.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if not entry.is_dir(follow_symlinks=False):
                continue
            if NAMES.fullmatch(entry.name):
                with suppress(OSError):
                    _clear(Path(entry.path))
            elif deeper:
                sweep(Path(entry.path))


def exchanged(scratch: Path, folder: Path) -> bool:
    """Put a complete set of files in the place of a folder that holds files of the same names
    alone, in one step; False, with nothing done, where that cannot be.

    A shell's current folder stays the one that it is.
    """
    made = scratch / SET
    names = {path.name for path in (*made.iterdir(), scratch)}
    if folder == Path.cwd() or not {path.name for path in folder.iterdir()} <= names:
        return False
    with suppress(OSError), scratch_beside(folder) as beside:  # which may be another's folder
        moved = beside / folder.name
        os.rename(made, moved)
        shutil.copymode(folder, moved)
        with suppress(OSError):  # a mount point
            if exchange(moved, folder):
                return True
        os.rename(moved, made)
    return False


def move_set(scratch: Path, folder: Path) -> None:
    """Move a complete set of files into a folder one by one; on any error put all back."""
    names = [path.name for path in (scratch / SET).iterdir()]
    (scratch / COMPLETE).touch()
    try:
        finish(scratch, folder)
    except BaseException:
        (scratch / COMPLETE).unlink()
        for name in names:
            new, path, old = scratch / SET / name, folder / name, scratch / REPLACED / name
            if not os.path.lexists(new):
                os.rename(path, new)
            if os.path.lexists(old):
                os.rename(old, path)
        raise


def finish(scratch: Path, folder: Path) -> None:
    """Move what is left of a complete set of files into a folder, as `move_set` began to."""
    if not (scratch / COMPLETE).exists():
        return
    (scratch / REPLACED).mkdir(exist_ok=True)
    for new in sorted((scratch / SET).iterdir()):
        path = folder / new.name
        if os.path.lexists(path):
            os.rename(path, scratch / REPLACED / new.name)
        os.rename(new, path)


def _clear(scratch: Path) -> None:
    """Put right and delete a scratch folder, unless its maker lives."""
    handle = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError, if it lives
        finish(scratch, scratch.parent)
        recover(scratch, scratch.parent)
        shutil.rmtree(scratch)
    finally:
        os.close(handle)


@contextmanager
def _locked(prefix: str, parent: Path) -> Iterator[Path]:
    """Make a folder, and hold its lock for as long as it is needed."""
    while True:
        folder = Path(tempfile.mkdtemp(PART, prefix, parent))
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # swept before it was locked
            continue
        with suppress(OSError):  # where folders have no locks, nobody sweeps either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():
            break
        os.close(handle)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)
