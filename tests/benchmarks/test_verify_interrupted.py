"""`verify` that is interrupted leaves no process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from pocketfocus.benchmarks import verify
from pocketfocus.benchmarks.verify import verify_run
from pocketfocus.mobile_harness.host import Host


def test_an_interrupted_one_ends_what_has_begun(
    exported: Callable[[Sequence[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs run in threads, which Ctrl-C does not reach: their processes are killed."""
    run = exported(["onnx/student-fp32.onnx", "onnx/student-int8.onnx"])

    def interrupted(rows: Iterator[object], *_: object) -> Iterator[object]:
        yield next(rows)
        raise KeyboardInterrupt

    before = {child.pid for child in psutil.Process().children()}
    monkeypatch.setattr(verify, "track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify_run(run, Host())
    assert {child.pid for child in psutil.Process().children()} <= before
