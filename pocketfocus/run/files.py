"""Files that are whole or absent: atomic writes, hashes, and JSON under a schema version."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pocketfocus.run.errors import UserError

SCHEMA_VERSION = 1
READABLE = 0o044  # by group and others
UMASK = os.umask(0o077)  # only setting it tells what it was
os.umask(UMASK)
SETTLED_NS = 100_000_000
POLL_S = 0.05
T = TypeVar("T")


@contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; on success fsync it and rename it to `path`.

    The caller may create a file or a folder there. On any error, Ctrl-C included, the scratch is
    removed and an older `path` stays as it was. Raises UserError when the folder cannot be written
    or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch_dir = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise writing_failed(path, error) from error
    scratch = scratch_dir / path.name
    try:
        yield scratch
        _sync(scratch)
        if path.is_dir() and not path.is_symlink():
            os.rename(path, scratch_dir / f"{path.name}.old")
        os.replace(scratch, path)
    except OSError as error:
        raise writing_failed(path, error) from error
    finally:
        shutil.rmtree(scratch_dir, ignore_errors=True)


@contextmanager
def alone_in(folder: Path, what: str, wait_s: float = 0.0) -> Iterator[None]:
    """Let one process, and one thread, at a time do something to a folder, which is made.

    UserError naming `what` is done when another still does after `wait_s`. Whoever dies lets go,
    and a folder that stays empty goes again.
    """
    there = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise writing_failed(folder, error) from error
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"{folder} is being written to by another process: {what} when it has "
                        "ended, or in another folder"
                    ) from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(handle)
        if not there:
            with suppress(OSError):  # it holds files
                folder.rmdir()


def writing_failed(path: Path, error: OSError) -> UserError:
    """Return the one line for a file that could not be written."""
    reason = error.strerror or str(error)
    return UserError(
        f"cannot write {path}: {reason}; free some space or choose another folder with --out"
    )


def _sync(path: Path) -> None:
    for entry in [path, *(path.rglob("*") if path.is_dir() else ())]:
        if entry.is_file():
            entry.chmod(entry.stat().st_mode | READABLE & ~UMASK)  # safetensors writes 0600
            with open(entry, "rb+") as handle:
                os.fsync(handle.fileno())


def once_a_file(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """Let this process call `read` once for a file, and again when the file has changed.

    A file that was changed within the last tenth of a second is read each time: it could be changed
    again without its times telling.
    """
    known: dict[tuple[int, ...], T] = {}

    def reread(path: Path) -> T:
        try:
            stat = path.stat()
        except OSError:
            return read(path)
        own = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if own not in known:
            value = read(path)
            if time.time_ns() - stat.st_ctime_ns < SETTLED_NS:
                return value
            known[own] = value
        return known[own]

    return reread


@once_a_file
def _digest(path: Path) -> bytes:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def sha256(path: Path) -> str:
    """Return SHA-256 of a file, or of a folder's relative names and contents in sorted order."""
    digest = hashlib.sha256()
    path = Path(path)
    for entry in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if path.is_dir():
            digest.update(entry.relative_to(path).as_posix().encode() + b"\0")
        digest.update(_digest(entry))
    return digest.hexdigest()


def size_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def key_of(**inputs: Any) -> str:
    """Return a short stable hash of JSON-able inputs: what a stage's result depends on."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` under `schema_version`, atomically."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=1, allow_nan=False)
    with write_atomic(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that is written there")
    return number


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object written by `write_json`; UserError when missing, broken or too new."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        content = json.loads(text, parse_constant=_number, parse_float=_number)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that writes it first") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it and run again") from error
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != SCHEMA_VERSION:
        raise UserError(f"{path} has schema_version {found}, this version reads {SCHEMA_VERSION}")
    return content
