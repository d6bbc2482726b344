"""Names out of files lead below their folder, or nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketfocus.run.errors import UserError
from pocketfocus.run.paths import below


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../outside", "onnx/../../outside", "/etc/passwd", "//etc/passwd",
        "onnx\\..\\..\\outside", "a\0b", "onnx/..",
    ],
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no path below"):
        below(tmp_path, name)


def test_a_name_that_no_disk_takes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no path below"):
        below(tmp_path, "x" * 5000 + "/y")


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "run" / "file").symlink_to(tmp_path / "secret")
    (tmp_path / "run" / "folder").symlink_to(tmp_path)
    (tmp_path / "run" / "own").symlink_to("real")
    for name in ("file", "folder/secret"):
        with pytest.raises(UserError, match="link out of"):
            below(tmp_path / "run", name)
    assert below(tmp_path / "run", "own") == tmp_path / "run" / "own"


def test_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert below(tmp_path, "onnx/student..-[int8].onnx") == tmp_path / "onnx/student..-[int8].onnx"
    monkeypatch.chdir(tmp_path)
    assert below(Path(), "onnx/a.onnx") == Path("onnx/a.onnx")
