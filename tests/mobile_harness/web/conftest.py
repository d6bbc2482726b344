"""The page, built once, and a small run that a real `pocketfocus serve` process serves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Exported


@pytest.fixture(scope="session")
def web_run(exported: Exported) -> Path:
    """A run with two ONNX files of a student for 64-pixel photos."""
    return exported(["onnx/student-fp32.onnx", "onnx/student-int8.onnx"])


@dataclass(frozen=True)
class Serving:
    """A process, its address, and the run that it serves."""

    process: subprocess.Popen[str]
    url: str
    run: Path

    @property
    def port(self) -> int:
        return int(re.findall(r":(\d+)/", self.url)[0])

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """A signal, and the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


def start(run: Path, *options: str, environment: dict[str, str] | None = None) -> Serving:
    return started(["serve", str(run), "--port", "0", *options], run, environment)


def start_on_network(run: Path, environment: dict[str, str] | None = None, *more: str) -> Serving:
    try:
        return start(run, "--lan", *more, environment=environment)
    except AssertionError as error:
        if "on no network" in str(error):
            pytest.skip("this machine is on no network")
        raise


def started(arguments: list[str], run: Path, environment: dict[str, str] | None = None) -> Serving:
    """A pocketfocus process that has said its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pocketfocus", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        address = re.search(r"https?://\S+", line)
        if address:
            return Serving(process, address[0], run)
    raise AssertionError("".join(said))


@pytest.fixture(scope="session")
def serving(built_page: Path, web_run: Path) -> Iterator[Serving]:
    server = start(web_run)
    yield server
    server.stop()
