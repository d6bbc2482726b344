"""Files that are whole or absent, and hashes that anyone can take."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pocketfocus.run import files
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import alone_in, reserve, sha256, write_atomic, write_set

NAMES = ("config.json", "a/b.bin", "a.bin", "a-b/c", "Z", "a b", "ünï", "new\nline", "back\\s")
needs_sha256sum = pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")


def printed(command: str, folder: Path) -> str:
    found = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=True)
    return found.stdout.decode().split()[0]


@needs_sha256sum
def test_a_files_hash_is_what_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "file.pte").write_bytes(bytes(range(256)) * 5000)
    assert sha256(tmp_path / "file.pte") == printed("sha256sum file.pte", tmp_path)


@needs_sha256sum
@pytest.mark.parametrize("names", [NAMES, NAMES[:1], ()], ids=["many", "one", "none"])
def test_a_folders_hash_is_what_the_command_of_the_docs_prints(
    names: tuple[str, ...], root: Path, tmp_path: Path
) -> None:
    docs = (root / "docs" / "using.md").read_text(encoding="utf-8")
    command = re.search(r"\(cd build/mine/student && (find .*sha256sum)\)", docs)
    assert command is not None
    for name in names:
        path = tmp_path / "student" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "student").mkdir(exist_ok=True)
    assert sha256(tmp_path / "student") == printed(command[1], tmp_path / "student")


LIMIT = 1_000_000
WRITERS = {
    "safetensors": lambda path: save_file({"weight": torch.zeros(LIMIT)}, path),
    "numpy": lambda path: np.save(path, np.zeros(LIMIT)),
    "bytes": lambda path: path.write_bytes(bytes(2 * LIMIT)),
    "copies": lambda path: shutil.copytree(path.parents[1] / "large", path),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("write", [write_atomic, write_set])
def test_whatever_writes_onto_a_full_disk_one_line_says_so(
    write: Callable[[Path], AbstractContextManager[Path]],
    writer: Callable[[Path], object],
    tmp_path: Path,
) -> None:
    """The system's limit on a file's size stands in for it: libraries have errors of their own."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(bytes(2 * LIMIT))
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        with pytest.raises(UserError) as caught, write(out) as scratch:
            writer(scratch / "file" if scratch.is_dir() else scratch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"cannot write {out}: ")
    assert str(caught.value).endswith("; free some space or choose another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_other_exceptions_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), write_atomic(tmp_path / "file"):
        raise RuntimeError("broken")


def test_a_file_that_is_written_through_memory_has_its_space_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a full disk is SIGBUS."""
    for name in ("linux", "macos"):
        (tmp_path / name).write_bytes(b"kept")
        os.truncate(tmp_path / name, 3_000_000)
    reserve(tmp_path / "linux")
    with monkeypatch.context() as patched:
        patched.delattr(os, "posix_fallocate")
        reserve(tmp_path / "macos")
    for name in ("linux", "macos"):
        assert (tmp_path / name).stat().st_blocks * 512 >= 3_000_000
        assert (tmp_path / name).read_bytes() == b"kept" + bytes(2_999_996)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left"), write_atomic(tmp_path / "x") as scratch:
        scratch.touch()
        reserve(scratch)


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize("write", [write_atomic, write_set])
def test_files_and_folders_have_the_modes_of_the_umask(
    write: Callable[[Path], AbstractContextManager[Path]],
    umask: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a library gives its files, as safetensors 0600, or a copy had."""
    monkeypatch.setattr(files, "UMASK", umask)
    with write(tmp_path / "out") as scratch:
        scratch.mkdir(exist_ok=True)
        (scratch / "deeper").mkdir(mode=0o700)
        for name, mode in (("private", 0o600), ("public", 0o644), ("program", 0o755)):
            (scratch / "deeper" / name).touch()
            (scratch / "deeper" / name).chmod(mode)
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    assert found == {
        "deeper": 0o777 & ~umask,
        "private": 0o666 & ~umask,
        "public": 0o666 & ~umask,
        "program": 0o777 & ~umask,
    }


@pytest.mark.parametrize("filled", [False, True])
def test_a_folder_that_stays_empty_goes_again_with_those_made_for_it(
    tmp_path: Path, filled: bool
) -> None:
    folder = tmp_path / "out" / "training"
    with alone_in(folder, "distill"):
        if filled:
            (folder / "x").touch()
    assert (tmp_path / "out").exists() == folder.exists() == filled
    assert tmp_path.exists()
