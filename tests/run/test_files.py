"""Files that are whole or absent, and hashes that anyone can take."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pocketfocus.run.files import sha256

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
