"""How the scripts behind tables of the docs end with bad input: one line, exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocketfocus.benchmarks import tables
from pocketfocus.research import (
    card,
    full,
    gpu_subset,
    imagenet,
    photo_sizes,
    positions,
    rendering,
)
from pocketfocus.run.errors import UserError, reported

MISSING = "no/such/folder"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (card, ["student", MISSING]),
        (full, [MISSING]),
        (gpu_subset, [MISSING, "out"]),
        (imagenet, [MISSING, "out"]),
        (photo_sizes, ["student", "0.3", MISSING]),
        (positions, [MISSING]),
        (rendering, [MISSING, "onnx/student-fp32.onnx", "1"]),
        (tables, [MISSING]),
    ],
    ids=lambda value: value.__name__ if hasattr(value, "__name__") else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    script: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(script.__name__.rpartition(".")[2] + ": ")
    assert MISSING in said
    assert not list(tmp_path.iterdir())  # nothing was written


def test_every_script_reports_errors_so() -> None:
    """One whose `main` knows UserErrors, but not how to end with them, ends in a traceback."""
    scripts = [
        path
        for path in Path(card.__file__).parent.glob("*.py")
        if "def main(" in path.read_text(encoding="utf-8")
    ]
    assert len(scripts) > 12
    unreported = [
        path.name for path in scripts if f'reported("{path.stem}")' not in path.read_text("utf-8")
    ]
    assert not unreported


def test_other_errors_come_through() -> None:
    with pytest.raises(KeyError), reported("script"):
        raise KeyError("a bug")
    with pytest.raises(SystemExit) as stop, reported("script"):
        raise UserError("mend it")
    assert stop.value.code == 2
