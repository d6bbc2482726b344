"""The stages after distillation: none of them takes a run of no files for a good one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pocketfocus.cli import main


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "RUN"),
        ("verify", "RUN", "--repeat", "2"),
        ("verify", "RUN", "--golden", "RUN/golden"),
        ("bench", "RUN"),
        ("lint", "RUN"),
        ("publish", "RUN", "--unproven"),
    ],
)
def test_a_run_of_no_files_is_no_success(
    words: tuple[str, ...],
    small_student: Path,
    tmp_path: Path,
    make_run: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As an export leaves it that found another student there, and was killed."""
    make_run(tmp_path, small_student, [])
    before = sorted(tmp_path.rglob("*"))
    assert main([word.replace("RUN", str(tmp_path)) for word in words]) == 2
    assert re.search(r"holds no file(: run export again| of a student)", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before
