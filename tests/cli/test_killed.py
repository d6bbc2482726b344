"""Commands that write are killed before each of their renames and deletions, and end as if nothing
had been when they run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.source import none

# At least, by part: `evaluate` saves by the clock.
KILLS = {"run": 40, "others": 30}


@pytest.mark.timeout(900)  # on a machine that does other things too
@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=pytest.mark.xdist_group(f"kills {part}")) for part in KILLS]
)
def test_what_was_killed_ends_as_if_it_never_was(
    root: Path, small_student: Path, small_reference: Path, tmp_path: Path, part: str
) -> None:
    """The same bytes, no student but its own, and nothing left over."""
    (tmp_path / "tmp").mkdir()
    places = {"TMPDIR": str(tmp_path / "tmp"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = (str(path) for path in (tmp_path, small_student, small_reference, part))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.cli.killing", *words],
        cwd=root,
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    said = json.loads(ended.stdout)
    none(said["wrong"])
    assert all(said["kills"].values()) and sum(said["kills"].values()) >= KILLS[part], said
