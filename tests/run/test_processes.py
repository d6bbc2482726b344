"""One protocol for work in other processes: what comes back, how failures are told, what is left
behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from pocketfocus.run import processes
from pocketfocus.run.errors import UserError
from pocketfocus.run.processes import (
    CHILD_FILE,
    Answer,
    Work,
    Worker,
    WorkFailed,
    run_work,
    workers,
)
from pocketfocus.run.scratch import sweep

CALLS = """
import os, resource, signal, subprocess, sys, time
from pathlib import Path

import numpy as np

class UserError(Exception):
    pass

class NoSuchFile(UserError):
    pass

count = 0

def double(arguments, arrays, say):
    say("half way")
    print("a library's chatter")
    os.write(1, b"a C library's chatter")
    say("at the end\\nof it")
    made = {f"{name}/twice": 2 * array for name, array in arrays.items()}
    return {"kinds": [type(array).__name__ for array in arrays.values()], **arguments}, made

def mistake(arguments, arrays, say):
    raise NoSuchFile("no model at x: name another\\nor export it")

def broken(arguments, arrays, say):
    raise ValueError("does not fit\\nand more")

def dies(arguments, arrays, say):
    os.kill(os.getpid(), getattr(signal, arguments["signal"]))

def leaves(arguments, arrays, say):
    print("loading", file=sys.stderr)
    raise SystemExit(arguments["how"])

def ends(arguments, arrays, say):
    os._exit(0)

def sleeps(arguments, arrays, say):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say("sleeping")
    if "pid" in arguments:
        Path(arguments["pid"]).write_text(str(os.getpid()))
    time.sleep(60)

def counts(arguments, arrays, say):
    global count
    count += 1
    return {"count": count, "pid": os.getpid()}, {}

def fills(arguments, arrays, say):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(8_000_000)
    return {"faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}, {}

def makes(arguments, arrays, say):
    return {}, {"made": np.zeros(1_000_000)}

def threads(arguments, arrays, say):
    import torch

    return {"threads": torch.get_num_threads()}, {}

def asks(arguments, arrays, say):
    return {"read": sys.stdin.read(), "inherited": subprocess.check_output(["cat"]).decode()}, {}
"""


@pytest.fixture
def calls(tmp_path: Path) -> Callable[..., Work]:
    """calls(name, arrays={}, **arguments): work for a function of CALLS."""
    path = tmp_path / "calls.py"
    path.write_text(CALLS)
    return lambda name, arrays=None, /, **given: Work(f"{path}:{name}", given, arrays or {})


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_json_and_arrays_go_both_ways(calls: Callable[..., Work], scratch: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "photos": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)[:, ::-1],
        "one hot": np.eye(9, dtype=np.int64)[2:3],
        "scalar": np.array(1.5),
    }
    said: list[str] = []
    work = calls("double", arrays, name="a/ä.onnx", limit=float("inf"), nothing=None)
    answer = run_work(work, on_progress=said.append)
    assert answer.fields == {
        "kinds": ["memmap"] * 3,
        "name": "a/ä.onnx",
        "limit": float("inf"),
        "nothing": None,
    }
    assert list(answer.arrays) == ["photos/twice", "one hot/twice", "scalar/twice"]
    for name, array in arrays.items():
        made = answer.arrays[f"{name}/twice"]
        np.testing.assert_array_equal(made, 2 * array)
        assert made.dtype == array.dtype
    assert said == ["half way", "at the end\nof it"]
    assert list(scratch.iterdir()) == []


def test_what_a_user_can_mend_comes_back_as_it_was(calls: Callable[..., Work]) -> None:
    with pytest.raises(UserError, match=r"^no model at x: name another\nor export it$") as caught:
        run_work(calls("mistake"))
    assert not isinstance(caught.value, WorkFailed)


def test_functions_of_the_package_are_called_by_name(tmp_path: Path) -> None:
    work = Work("pocketfocus.run.manifest:load_manifest", {})
    with pytest.raises(WorkFailed, match=r"^TypeError: load_manifest\(\) takes 1 positional"):
        run_work(work)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("broken", {}, "^ValueError: does not fit"),
        ("absent", {}, "^AttributeError: .* has no attribute 'absent'"),
        ("dies", {"signal": "SIGKILL"}, r"^the process that ran it died of SIGKILL \(out of"),
        ("dies", {"signal": "SIGSEGV"}, "^the process that ran it died of SIGSEGV$"),
        ("leaves", {"how": "no library"}, "^the process that ran it ended with code 1: no library"),
        ("leaves", {"how": 3}, "^the process that ran it ended with code 3: loading$"),
        ("ends", {}, "^the process that ran it left no result$"),
    ],
)
def test_any_other_end_is_one_clear_line(
    name: str, arguments: dict[str, object], message: str, calls: Callable[..., Work], scratch: Path
) -> None:
    with pytest.raises(WorkFailed, match=message) as caught:
        run_work(calls(name, {"photos": np.zeros(3)}, **arguments), timeout_s=60)
    assert "\n" not in str(caught.value)
    assert list(scratch.iterdir()) == []


def test_a_failure_notes_where_it_was_raised(calls: Callable[..., Work]) -> None:
    with pytest.raises(WorkFailed) as caught:
        run_work(calls("broken"))
    assert "in broken" in caught.value.__notes__[0]


def test_what_does_not_end_is_stopped(calls: Callable[..., Work], scratch: Path) -> None:
    pid, began = scratch.parent / "pid", time.monotonic()
    with pytest.raises(WorkFailed, match=r"^did not finish within 2 s and was stopped$"):
        run_work(calls("sleeps", pid=str(pid)), timeout_s=2)
    assert time.monotonic() - began < 30
    assert not psutil.pid_exists(int(pid.read_text()))
    assert list(scratch.iterdir()) == []


def test_one_worker_takes_many_works_and_survives_their_errors(calls: Callable[..., Work]) -> None:
    with Worker() as worker:
        assert worker.process is None, "nothing starts before it is needed"
        first = worker.run(calls("counts")).fields
        with pytest.raises(UserError, match="no model"):
            worker.run(calls("mistake"))
        with pytest.raises(WorkFailed, match="ValueError"):
            worker.run(calls("broken"))
        assert worker.run(calls("counts")).fields == {"count": 2, "pid": first["pid"]}
        with pytest.raises(WorkFailed, match="SIGKILL"):
            worker.run(calls("dies", signal="SIGKILL"))
        again = worker.run(calls("counts")).fields
        assert again["count"] == 1 and again["pid"] != first["pid"]
    assert not psutil.pid_exists(again["pid"])


def test_threads_share_so_many_processes_one_after_the_other(calls: Callable[..., Work]) -> None:
    with workers(2) as borrowed:

        def count(_: int) -> dict[str, int]:
            with borrowed() as worker:
                return dict(worker.run(calls("counts")).fields)

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(count, range(8)))
        with pytest.raises(WorkFailed), borrowed() as worker:
            worker.run(calls("broken"))
        found += [count(0), count(0)]
    pids = {each["pid"] for each in found}
    assert len(pids) <= 2 and max(each["count"] for each in found) >= 5
    assert not any(map(psutil.pid_exists, pids))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone can be told")
def test_processes_that_are_shared_keep_freed_memory(calls: Callable[..., Work]) -> None:
    def faults(worker: Worker) -> int:
        return int(worker.run(calls("fills")).fields["faults"])

    with Worker() as alone, workers(1) as borrowed, borrowed() as shared:
        assert faults(shared) >= 0 and faults(alone) >= 0  # the first arrays are new to both
        assert faults(shared) < faults(alone) / 10


@pytest.mark.parametrize(("cores", "count", "each"), [(4, 2, 2), (2, 2, 1), (2, 3, 1)])
def test_processes_that_work_at_once_share_the_cores(
    calls: Callable[..., Work],
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    count: int,
    each: int,
) -> None:
    monkeypatch.setattr(processes, "cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with workers(count) as borrowed, borrowed() as worker:
        assert worker.run(calls("threads")).fields["threads"] == each


def test_a_worker_that_died_between_works_is_told(calls: Callable[..., Work]) -> None:
    with Worker() as worker:
        os.kill(worker.run(calls("counts")).fields["pid"], signal.SIGTERM)
        with pytest.raises(WorkFailed, match="died of SIGTERM"):
            worker.run(calls("counts"))
        assert worker.run(calls("counts")).fields["count"] == 1


def test_an_error_while_progress_is_told_ends_the_process(calls: Callable[..., Work]) -> None:
    def refuse(text: str) -> None:
        raise RuntimeError(text)

    with Worker() as worker:
        with pytest.raises(RuntimeError, match="sleeping"):
            worker.run(calls("sleeps"), on_progress=refuse)
        assert worker.process is None


def test_work_reads_nothing_of_the_protocol(calls: Callable[..., Work]) -> None:
    assert run_work(calls("asks")) == Answer({"read": "", "inherited": ""}, {})


def test_a_python_without_the_package_serves_too(calls: Callable[..., Work]) -> None:
    with Worker([sys.executable, "-P", str(CHILD_FILE)], {"PATH": os.environ["PATH"]}) as worker:
        answer = worker.run(calls("double", {"a": np.ones(2)}))
        np.testing.assert_array_equal(answer.arrays["a/twice"], [2, 2])
        with pytest.raises(UserError, match="no model at x"):
            worker.run(calls("mistake"))


def test_the_child_needs_the_standard_library_and_numpy_only() -> None:
    program = f"import runpy, sys; runpy.run_path({str(CHILD_FILE)!r}); print(*sys.modules)"
    command = [sys.executable, "-P", "-c", program]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    tops = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert not tops & {"pocketfocus", "torch", "pydantic", "rich", "PIL"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_whatever_ends_the_parent_ends_the_process_and_leaves_nothing(
    number: signal.Signals, calls: Callable[..., Work], tmp_path: Path
) -> None:
    """What a killed one leaves, the next to start sweeps."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    call, pid = calls("sleeps").call, tmp_path / "pid"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pocketfocus.run.ending import SIGNALS, as_interrupted\n"
            "from pocketfocus.run.processes import Work, run_work\n"
            "with as_interrupted(*SIGNALS):\n"
            f"    run_work(Work({call!r}, {{'pid': {str(pid)!r}}}))",
        ],
        env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: pid.is_file() and pid.read_text() != "", 60)
    worker = int(pid.read_text())
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=30)
    wait_for(lambda: not is_running(worker), 30)
    if number == signal.SIGKILL:
        sweep(scratch)
    else:
        assert errors.strip().endswith("KeyboardInterrupt")
    assert list(scratch.iterdir()) == []


def is_running(process: int) -> bool:
    """Whether it is there and no zombie, which an init that reaps none leaves."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("given", [0, 1_000_000])
def test_a_full_folder_for_temporary_files_is_one_line(
    given: int, calls: Callable[..., Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what goes there and what comes back; the limit on a file's size stands in for it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    work = calls("makes", {"given": np.zeros(given)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(UserError, match="temporary files, is full: free some space") as caught:
            run_work(work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(caught.value) and not isinstance(caught.value, WorkFailed)
    assert not list(tmp_path.glob("pocketfocus-*"))
