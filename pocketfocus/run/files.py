"""Files that are whole or absent: atomic writes, hashes, and JSON under a schema version."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from pocketfocus.run.child import os_error
from pocketfocus.run.errors import UserError, way_to_write
from pocketfocus.run.scratch import SET, exchanged, move_set, scratch_beside
from pocketfocus.run.swap import put

SCHEMA_VERSION = 1
ESCAPED = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))  # in names, by sha256sum
FILE, FOLDER, EXECUTABLE = 0o666, 0o777, 0o111  # modes that the umask is taken from
UMASK = os.umask(0o077)  # only setting it tells what it was
os.umask(UMASK)
SETTLED_NS = 100_000_000
POLL_S = 0.05
BLOCK = 512  # bytes that `st_blocks` counts in
T = TypeVar("T")


@contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Yield a scratch path; on success fsync what is there, and put it in the place of `path`.

    The caller may create a file or a folder there. On any error, Ctrl-C included, the scratch is
    removed and an older `path` stays as it was; so it does where the process is killed, and the
    next one that writes there sweeps. Raises UserError when the folder cannot be written or the
    disk is full.
    """
    path = Path(path)
    with one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(path) as folder:
            scratch = folder / path.name
            yield scratch
            _sync(scratch)
            put(scratch, path)


def check_replaceable(
    folder: Path, marks: Sequence[str], option: str, own: Collection[str] | None = None
) -> None:
    """Raise UserError, before anything is computed, unless `folder` may be replaced whole: it is
    new, empty, or holds all of the files or folders that were written there before and, where all
    its `own` ones are known, nothing beside them."""
    holds_some = folder.is_dir() and any(folder.iterdir())
    if holds_some and not all((folder / mark).exists() for mark in marks):
        raise UserError(f"{folder} holds something else: name a new folder with {option}")
    if not holds_some or own is None:
        return
    for path in sorted(folder.rglob("*")):
        is_one = path.is_symlink() or not path.is_dir()
        if is_one and not any(path.is_relative_to(folder / each) for each in own):
            raise UserError(
                f"{path} was not written by what is to replace {folder}: name a new folder with "
                f"{option}, or move it away"
            )


@contextmanager
def write_set(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder whose files and folders move into `folder` in the end, all or none.

    Others in `folder` stay, those of the same names are replaced: in one step where it holds no
    others, else one by one, and where the process is killed meanwhile, the next one that writes
    there moves the rest. UserError, when nothing can be written, leaves all as it was.
    """
    folder = Path(folder)
    is_new = False
    try:
        with one_line(folder):
            is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            with scratch_beside(folder / SET) as hidden:
                made = hidden / SET
                made.mkdir()
                yield made
                _sync(made)
                for name in (each.name for each in made.iterdir() if each.is_file()):
                    if (folder / name).is_dir():
                        raise IsADirectoryError(errno.EISDIR, f"{name} in it is a folder")
                if not exchanged(hidden, folder.resolve()):
                    move_set(hidden, folder)
        is_new = False
    finally:
        if is_new:
            with suppress(OSError):  # it holds files
                folder.rmdir()


@contextmanager
def alone_in(folder: Path, what: str, wait_s: float = 0.0) -> Iterator[None]:
    """Let one process, and one thread, at a time do something to a folder, which is made.

    UserError naming `what` is done when another still does after `wait_s`. Whoever dies lets go,
    and a folder that stays empty goes again, as do those above it that were made for it.
    """
    made = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
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
        with suppress(OSError):  # one holds files
            for path in made:
                path.rmdir()


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Make a UserError about `path` of any exception that is or tells of the system's error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        failed = os_error(error)
        if failed is None:
            raise
        raise writing_failed(path, failed) from error


def reserve(path: Path) -> None:
    """Take the space on the disk that a file only claims, before its pages are written through
    memory, which a full disk would answer with SIGBUS. OSError when there is too little.
    """
    size = path.stat().st_size
    with open(path, "rb+") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, size)
        elif path.stat().st_blocks * BLOCK < size:  # macOS
            while block := handle.read(1 << 20):
                handle.seek(-len(block), os.SEEK_CUR)
                handle.write(block)


def writing_failed(path: Path, error: OSError) -> UserError:
    """Return the one line for a file that could not be written."""
    return UserError(f"cannot write {path}: {error.strerror or error}; {way_to_write(error)}")


def _sync(path: Path) -> None:
    """Write to the disk what is there, under the modes that the umask gives new files: libraries
    and copies have others."""
    for entry in [path, *(path.rglob("*") if path.is_dir() else ())]:
        if entry.is_dir():
            entry.chmod(FOLDER & ~UMASK)
        elif entry.is_file():
            entry.chmod((FILE | entry.stat().st_mode & EXECUTABLE) & ~UMASK)
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
def _digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256(path: Path, parts: Collection[str] = ("",)) -> str:
    """Return the SHA-256 of a file, or of a list of all the files in a folder, or in these parts of
    it: files, and folders with all that is in them.

    The list is what `sha256sum` prints: a line a file, hash and path below the folder, in the order
    of the paths' bytes; docs/using.md has the command that gives the same.
    """
    path = Path(path)
    if path.is_file():
        return _digest(path)
    found = [p for part in parts for p in (path / part, *(path / part).rglob("*"))]
    entries = {os.fsencode(p.relative_to(path)): p for p in found if p.is_file()}
    digest = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        escaped = name
        for plain, shown in ESCAPED:
            escaped = escaped.replace(plain, shown)
        mark = b"" if escaped == name else b"\\"
        digest.update(mark + _digest(entry).encode() + b"  ./" + escaped + b"\n")
    return digest.hexdigest()


def copy(path: Path, to: Path) -> None:
    """Copy a file or a folder, and make the folders that the copy lies in."""
    to.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if path.is_dir() else shutil.copy)(path, to)


def size_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def key_of(**inputs: Any) -> str:
    """Return a short stable hash of JSON-able inputs: what a stage's result depends on."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, content: Mapping[str, Any], version: int = SCHEMA_VERSION) -> None:
    """Write `content` under `schema_version`, atomically."""
    text = json.dumps({"schema_version": version, **content}, indent=1, allow_nan=False)
    with write_atomic(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that is written there")
    return number


def read_json(path: Path, version: int = SCHEMA_VERSION, anew: str = "") -> dict[str, Any]:
    """Read a JSON object written by `write_json`; UserError when missing, broken or of another
    version, which names the way out: `anew`."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        content = json.loads(text, parse_constant=_number, parse_float=_number)
    except FileNotFoundError:
        way_out = anew or "run the stage that writes it first"
        raise UserError(f"{path} is missing: {way_out}") from None
    except (OSError, ValueError, RecursionError) as error:
        way_out = anew or "delete it and run again"
        raise UserError(f"{path} cannot be read ({error}): {way_out}") from error
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != version:
        way_out = anew or "delete it and run the stage that writes it"
        raise UserError(
            f"{path} has schema_version {found}, this version reads {version}: {way_out}"
        )
    return content
