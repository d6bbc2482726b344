"""The outcome is decided by the work: whoever reads the output, and in whatever encoding."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import typer
from rich.console import Console
from pocketfocus.cli import app
def work(code: int) -> int:
    print("é – " * 20_000)
    typer.echo("é –")
    Console().print("é –")
    print("é –", file=sys.stderr)
    raise typer.Exit(code)
def call(*_, **__):
    try:
        work(int(sys.argv[1]))
    except typer.Exit as done:
        return done.exit_code
app.command_line = lambda: call
sys.exit(app.main([]))
"""


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_the_exit_code_stays(code: int, encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    words = [sys.executable, "-c", PROGRAM, str(code)]
    for stream in ("stdout", "stderr"):
        reading, writing = os.pipe()
        os.close(reading)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writing}
        ended = subprocess.run(words, env=environment, check=False, **pipes)  # type: ignore[call-overload]
        os.close(writing)
        assert ended.returncode == code, (stream, ended.stderr)
        assert b"Traceback" not in (ended.stderr or b"")
