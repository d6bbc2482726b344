"""Toolchains are silenced while they work, and only then."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings

import pytest

from pocketfocus.export.quiet import VERBOSE, quiet, quiet_native


def chatter() -> None:
    print("printed")
    print("to stderr", file=sys.stderr)
    logging.getLogger("tool").warning("logged")
    warnings.warn("warned", stacklevel=1)


def test_chatter_is_held_back_and_comes_again(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as caught, quiet():
        chatter()
    assert capsys.readouterr() == ("", "")
    assert not caught
    assert not caplog.records
    with pytest.warns(UserWarning, match="warned"):
        chatter()
    assert capsys.readouterr().out == "printed\n"
    assert [r.message for r in caplog.records] == ["logged"]


def test_errors_come_through_and_silence_ends() -> None:
    with pytest.raises(ValueError, match="mine"), quiet():
        raise ValueError("mine")
    assert logging.root.manager.disable == 0


def test_native_output_is_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_native():
        os.write(2, b"from C++\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_verbose_lets_everything_through(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VERBOSE, "1")
    with quiet(), quiet_native():
        print("printed")
        os.write(2, b"from C++\n")
    assert capfd.readouterr() == ("printed\n", "from C++\n")


def test_threads_that_are_silent_at_once_leave_nothing_silent(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The one that began ends first, which left everything after it unheard."""
    streams, inside, left = (sys.stdout, sys.stderr), threading.Event(), threading.Event()

    def second() -> None:
        with quiet(), quiet_native():
            inside.set()
            left.wait(10)
            chatter()

    thread = threading.Thread(target=second)
    with quiet(), quiet_native():
        thread.start()
        assert inside.wait(10)
    print("another thread is silent, this one is not")
    left.set()
    thread.join()
    assert (sys.stdout, sys.stderr) == streams
    assert logging.root.manager.disable == 0
    with pytest.warns(UserWarning, match="warned"):
        chatter()
    os.write(2, b"after\n")
    printed, errors = capfd.readouterr()
    assert printed == "another thread is silent, this one is not\nprinted\n"
    assert errors.endswith("after\n")
