"""Files timed in turn: the order of visits, ratios that drift does not touch, and failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pocketfocus.mobile_harness.device import PYTORCH
from pocketfocus.research.clock import Round, Timed, p50, ratio, rounds
from pocketfocus.run.errors import UserError

PHOTO = np.zeros((1, 3, 64, 64), np.float32)


def test_ratios_within_rounds_are_free_of_drift() -> None:
    slower = [1.0, 1.7, 3.0, 9.0]
    found: list[Round] = [{"a": [2 * s, 2 * s, 50 * s], "b": [4 * s] * 3} for s in slower]
    assert ratio(found, "b", "a") == pytest.approx(2)
    found[1]["b"] = [4000.0] * 3
    assert ratio(found, "b", "a") == pytest.approx(2), "one disturbed round does not count"


def test_p50_is_of_all_calls() -> None:
    assert p50([{"a": [1.0, 2.0, 9.0]}, {"a": [3.0, 8.0, 9.0]}], "a") == pytest.approx(5.5)


def test_rounds_go_forth_and_back_over_all_files(small_student: Path) -> None:
    files = [Timed(name, PYTORCH, small_student, PHOTO) for name in "abc"]
    found = list(rounds(files, 2, 1, 3, threads=1))
    assert [list(made) for made in found] == [["c", "b", "a"], ["a", "b", "c"]]
    assert [len(calls) for made in found for calls in made.values()] == 6 * [2]
    assert list(rounds(files, 2, 3, 3)) == []


def test_a_slow_file_and_a_fast_one_are_told_apart(small_student: Path) -> None:
    """The same network on 64 times as many pixels: even a busy machine takes longer for it."""
    large = np.zeros((1, 3, 512, 512), np.float32)
    files = [
        Timed("fast", PYTORCH, small_student, PHOTO),
        Timed("slow", PYTORCH, small_student, large),
    ]
    found = list(rounds(files, 5, 0, 3, threads=1))
    assert ratio(found, "slow", "fast") > 2
    assert ratio(found, "fast", "slow") < 0.5
    assert p50(found, "slow") > 2 * p50(found, "fast")
    times = [ms for made in found for calls in made.values() for ms in calls]
    assert sum(times) < 60_000, "milliseconds"


def test_what_cannot_be_opened_is_named(small_student: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    files = [
        Timed("good", PYTORCH, small_student, PHOTO),
        Timed("bad", "onnx", tmp_path / "broken.onnx", PHOTO),
    ]
    with pytest.raises(UserError, match=r"^bad cannot be timed: .*broken\.onnx is no ONNX file"):
        list(rounds(files, 1, 0, 1, threads=1))
