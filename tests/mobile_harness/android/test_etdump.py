"""Times out of an ETDump that ExecuTorch's own C++ writer made, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pocketfocus.mobile_harness.android.etdump import read_profile
from pocketfocus.mobile_harness.device import JobError
from tests.mobile_harness.android import native_etdump

pytestmark = pytest.mark.skipif(not native_etdump.available(), reason="its library is for Linux")


def test_loading_executions_and_operators_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "profile.etdump"
    command = [sys.executable, native_etdump.__file__, str(path), "20", "80", "20"]
    subprocess.run(command, check=True, capture_output=True)
    profile = read_profile(path)
    assert len(profile.times_ms) == 3
    first, second, third = profile.times_ms
    assert first >= 20 and second >= 80 and third >= 20
    assert profile.load_ms >= 2
    medians = {each.operator: each.p50_ms for each in profile.operators}
    assert medians.keys() == {"DELEGATE_CALL", "native_call_add.out"}
    assert 20 <= medians["DELEGATE_CALL"] <= sorted(profile.times_ms)[1]
    assert medians["native_call_add.out"] < 20


def test_what_is_no_etdump_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "profile.etdump"
    path.write_bytes(b"\x1c\x00\x00\x00" + bytes(28))
    with pytest.raises(JobError, match=r"profile\.etdump is no ETDump"):
        read_profile(path)
