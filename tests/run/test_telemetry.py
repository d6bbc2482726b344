"""No command tells anyone of itself: no connection is opened, and nothing is kept at home."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.mobile_harness.arm64.install import environment
from pocketfocus.run.telemetry import SWITCHES
from tests.house.source import none

FILE = "onnx/student-fp32.onnx"
FINDS = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV", "LANG")
# Runs in every Python process, workers too, before anything else is imported.
SITE = """
import os, socket
connect = socket.socket.connect

def noted(self, address, *rest):
    if self.family != socket.AF_UNIX:
        with open(os.environ["CONNECTIONS"], "a") as file:
            file.write(f"{address}\\n")
    return connect(self, address, *rest)

socket.socket.connect = noted
"""


@pytest.fixture
def child(root: Path, tmp_path: Path) -> Callable[[Sequence[str]], None]:
    """child(words): run Python with them as a user with an empty home who has set nothing, and fail
    if it opens a connection or leaves anything in that home but our cache.

    onnxruntime connects from native code, which Python does not see; the device id that it keeps
    for that purpose tells of it. It keeps none where a variable tells it of continuous integration
    (`CI`, `TF_BUILD`, `JENKINS_URL`, ...), so the child is given nothing of the environment but
    what finds programs.
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    (tmp_path / "home").mkdir()
    kept = {name: os.environ[name] for name in FINDS if name in os.environ}
    paths = os.pathsep.join(map(str, (tmp_path / "site", root)))
    log = tmp_path / "connections"
    user = {"HOME": str(tmp_path / "home"), "PYTHONPATH": paths, "CONNECTIONS": str(log)}

    def run(words: Sequence[str]) -> None:
        done = subprocess.run(
            [sys.executable, *words], env=kept | user, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not log.exists(), log.read_text()
        ours = tmp_path / "home" / ".cache"
        kept_there = [path for path in (tmp_path / "home").rglob("*") if path != ours]
        none(str(p) for p in kept_there if not p.is_relative_to(ours / "pocketfocus"))

    return run


def test_no_command_connects(
    child: Callable[[Sequence[str]], None],
    exported: Callable[[Sequence[str]], Path],
    tmp_path: Path,
) -> None:
    """`refocus` opens a file in its own process and draws, `verify` does in a worker's; `doctor`
    asks all. Those that write are watched where they are killed (tests/cli/killing.py)."""
    made, photo = exported([FILE]), tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(photo)
    asked = ["refocus", str(photo), "--position", "4", "--out", str(tmp_path / "frames")]
    lines = [
        ["doctor"],
        [*asked, "--model", str(made / FILE)],
        ["verify", str(made), "--positions", "4"],
    ]
    child(["-c", f"from pocketfocus.cli import main; assert not any(map(main, {lines!r}))"])


CONNECTS = """
import socket
with socket.socket() as connection:
    try:
        connection.connect(("127.0.0.1", 9))
    except OSError:
        pass
"""


def test_a_connection_is_seen(child: Callable[[Sequence[str]], None]) -> None:
    with pytest.raises(AssertionError, match=r"127\.0\.0\.1"):
        child(["-c", CONNECTS])


def test_onnxruntime_by_itself_keeps_a_device_id(child: Callable[[Sequence[str]], None]) -> None:
    """If it no longer does, the test above proves nothing."""
    with pytest.raises(AssertionError, match="onnxruntime"):
        child(["-c", "import onnxruntime"])


def test_the_emulated_device_is_told_too(tmp_path: Path) -> None:
    assert environment(tmp_path).items() >= SWITCHES.items()
