"""A run folder without exporting anything: placeholders for files, and an honest manifest."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from pocketfocus.files import sha256, size_bytes
from pocketfocus.manifest import Artifact, Manifest


@pytest.fixture
def make_run() -> Callable[..., None]:
    """make_run(folder, student, names, refused={}): names as "onnx/student-fp32.onnx"."""
    return _make_run


def _make_run(
    folder: Path, student: Path, names: Sequence[str], refused: Mapping[str, str] | None = None
) -> None:
    shutil.copytree(student, folder / "student")
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(name.encode() * 100)
    artifacts = [_artifact(name, folder / name, "") for name in names]
    artifacts += [_artifact(name, None, why) for name, why in (refused or {}).items()]
    Manifest((64, 64), artifacts=artifacts, student_sha256=sha256(folder / "student")).save(folder)


def _artifact(name: str, path: Path | None, why: str) -> Artifact:
    return Artifact(
        name=name,
        target=name.partition("/")[0],
        precision=Path(name).stem.partition("-")[2],
        sha256=sha256(path) if path else "",
        bytes=size_bytes(path) if path else 0,
        status="written" if path else "refused",
        why=why,
    )
