"""What is kept: by its key, by a file's own times, and by the code that made it."""

from __future__ import annotations

import hashlib
import shutil
import time
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest

from pocketfocus.run import cache, manifest
from pocketfocus.run.cache import PACKAGE, Kept, source_hash
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import SETTLED_NS, once_a_file, read_json, sha256
from pocketfocus.run.manifest import Artifact, Manifest, check_artifact, load_manifest

SETTLED_S = 1.5 * SETTLED_NS / 1e9


def test_kept_fields_go_with_their_key(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    Kept(path, "a").save(rows=[1])
    begun = Kept(path, "a")
    assert begun.fields["rows"] == [1]
    begun.save(more=2)
    assert Kept(path, "a").fields == {"rows": [1], "more": 2}
    assert Kept(path, "b").fields == {}
    path.write_text("{")
    assert Kept(path, "a").fields == {}


def test_a_settled_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path, calls = tmp_path / "file", []

    @once_a_file
    def read(path: Path) -> str:
        calls.append(path)
        return path.read_text()

    path.write_text("a")
    assert (read(path), read(path)) == ("a", "a")
    assert len(calls) == 2, "just written: it could change again unseen"
    time.sleep(SETTLED_S)
    assert [read(path) for _ in range(3)] == ["a"] * 3
    assert len(calls) == 3
    path.write_text("b")
    assert read(path) == "b"
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")


def test_a_command_reads_the_manifest_and_hashes_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx").mkdir()
    names = [f"onnx/student-{precision}.onnx" for precision in ("fp32", "int8")]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    artifacts = [Artifact(n, "onnx", "fp32", sha256(tmp_path / n), 1) for n in names]
    Manifest((64, 64), artifacts).save(tmp_path)
    time.sleep(SETTLED_S)
    reads: list[Path] = []
    hashed: list[str] = []
    digest = hashlib.file_digest

    def read(path: Path, version: int, anew: str) -> dict[str, Any]:
        reads.append(path)
        return read_json(path, version, anew)

    def hash_of(file: BufferedReader, kind: str) -> Any:
        hashed.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(manifest, "read_json", read)
    monkeypatch.setattr(hashlib, "file_digest", hash_of)
    for _ in range(3):
        for artifact in load_manifest(tmp_path).artifacts:
            check_artifact(tmp_path, artifact)
    assert len(reads) == 1
    assert sorted(hashed) == [Path(name).name for name in names]
    (tmp_path / names[0]).write_bytes(b"changed")
    with pytest.raises(UserError, match="SHA-256"):
        check_artifact(tmp_path, load_manifest(tmp_path).artifacts[0])


@pytest.mark.parametrize(
    "source",
    [
        "mobile/folds.py",
        "export/stage.py",
        "export/coreml/mil/operators.py",
        "run/files.py",
        "quantize/recipes/int8.yaml",
    ],
)
def test_changed_sources_change_what_is_kept_of_them(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed fold once kept the files that were made with the old one."""
    copy = tmp_path / "pocketfocus"
    for name in ("models", "data", "photos", "run", "mobile", "export", "quantize"):
        shutil.copytree(PACKAGE / name, copy / name, ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(cache, "PACKAGE", copy)
    before = source_hash.__wrapped__("mobile", "quantize", "export")
    assert source_hash.__wrapped__("mobile", "quantize", "export") == before
    assert (copy / source).is_file()
    with open(copy / source, "a") as file:
        file.write("# changed\n")
    assert source_hash.__wrapped__("mobile", "quantize", "export") != before
