"""What is read from a Core ML package follows its program: shown by exchanging it."""

from __future__ import annotations

import shutil
from pathlib import Path

from pocketfocus.export.coreml import read as coreml
from pocketfocus.quantize.recipes import Scheme
from tests.export.test_read import artifact


def test_another_package_is_another_statement(run_dir: Path, tmp_path: Path) -> None:
    """A file in the place of another: the statement follows the file, not the name."""
    path = tmp_path / "student-int4.mlpackage"
    shutil.copytree(run_dir / artifact(run_dir, "coreml", "fp16").name, path)
    assert {found for found, _ in coreml.schemes(path)} == {Scheme(16)}
    found = coreml.schemes(run_dir / artifact(run_dir, "coreml", "int4").name)
    assert {scheme.bits for scheme, _ in found} == {4, 8, 16}
