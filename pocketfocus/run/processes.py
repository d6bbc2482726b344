"""Work in a Python process of its own: the one protocol for files, jobs and runtimes.

In the process a named function is called with plain JSON and named arrays, and gives the same back:
`function(arguments, arrays, say) -> (fields, arrays)`, where `say(text)` reports progress. Orders
and answers are lines of JSON (see `child`), arrays are .npy files in a folder of the work's own,
which is deleted in the end. A UserError of the function is raised here as one; any other end
is a WorkFailed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any
from weakref import WeakSet

import numpy as np
import psutil
from numpy.typing import NDArray

import pocketfocus
from pocketfocus.run.child import full, is_full
from pocketfocus.run.errors import UserError
from pocketfocus.run.memory import KEEPS_MEMORY
from pocketfocus.run.scratch import temporary_folder

CHILD = "pocketfocus.run.child"
CHILD_FILE = Path(__file__).with_name("child.py")
LIKELY = {"SIGKILL": " (out of memory?)", "SIGBUS": " (a full disk?)"}
LAST_BYTES = 4096  # of standard error, in which the last line is looked for


@dataclass(frozen=True)
class Work:
    """What a process is to do.

    Attributes:
        call: the function, as `package.module:name`, or `path/to/module.py:name` where the process
            has no such package.
        arguments: anything that JSON can hold.
        arrays: by name; memory-mapped and read-only in the process.
    """

    call: str
    arguments: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What the function gave: JSON and named arrays."""

    fields: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


class WorkFailed(UserError):  # noqa: N818 - as it is read where it is caught
    """The process died, its function raised an exception, or it did not end in time.

    One line that reads well after the work's name and a colon; a note holds the traceback.
    """


def run_work(
    work: Work,
    *,
    timeout_s: float | None = None,
    on_progress: Callable[[str], object] | None = None,
) -> Answer:
    """Do one work in a fresh process, which is killed on Ctrl-C and after `timeout_s`.

    Raises UserError as the function did, and WorkFailed for any other failure.
    """
    with Worker() as worker:
        return worker.run(work, timeout_s=timeout_s, on_progress=on_progress)


LIVE: WeakSet[Worker] = WeakSet()


def stop_all() -> None:
    """Kill every process that does a work now: what threads wait for them end with a WorkFailed."""
    for worker in list(LIVE):
        process = worker.process
        if process is not None:
            kill(process)


class Worker:
    """A process that takes one work after another, and is killed when the `with` block ends.

    It starts with its first work, and anew after one in which it died or was stopped.

    Args:
        command: starts `child.py` in another Python; None for this one, in which the process finds
            this very package first, and nothing in the current folder.
        environment: of `command`; of this Python what is set beside this process's own.
    """

    def __init__(
        self, command: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._command = command or [sys.executable, "-P", "-m", CHILD]
        self._environment = environment if command else {**_environment(), **(environment or {})}
        self._stderr: IO[bytes] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        work: Work,
        *,
        timeout_s: float | None = None,
        on_progress: Callable[[str], object] | None = None,
    ) -> Answer:
        """Do one work as `run_work` does; the process lives on unless it died or was stopped."""
        with _full_is_one_line(), temporary_folder("work") as folder:
            for number, array in enumerate(work.arrays.values()):
                np.save(folder / f"in-{number}.npy", array)
            order = {
                "call": work.call,
                "arguments": dict(work.arguments),
                "arrays": list(work.arrays),
                "folder": str(folder),
            }
            try:
                message = self._exchange(order, timeout_s, on_progress or (lambda text: None))
            except BaseException:
                self.close()
                raise
            return _answer(message, folder)

    def close(self) -> None:
        """Kill the process, if there is one."""
        process, self.process = self.process, None
        if process is not None:
            kill(process)
            process.wait()
            for stream in (process.stdin, process.stdout, self._stderr):
                with suppress(OSError):  # an order that the process never read
                    stream.close()  # type: ignore[union-attr]

    def _start(self) -> subprocess.Popen[str]:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        LIVE.add(self)
        return subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def _exchange(
        self, order: Mapping[str, Any], timeout_s: float | None, progress: Callable[[str], object]
    ) -> dict[str, Any]:
        """Send an order and wait for the message that ends it."""
        process = self.process = self.process or self._start()
        assert process.stdin is not None and process.stdout is not None
        limit_s, began = threading.TIMEOUT_MAX if timeout_s is None else timeout_s, time.monotonic()
        late = threading.Timer(limit_s, kill, [process])
        late.start()
        try:
            with suppress(BrokenPipeError):  # the process has died, and below is told how
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
            for line in process.stdout:
                message: dict[str, Any] = json.loads(line)
                if "progress" not in message:
                    return message
                progress(message["progress"])
        finally:
            late.cancel()
        if time.monotonic() - began >= limit_s:
            raise WorkFailed(f"did not finish within {limit_s:g} s and was stopped")
        reason = exit_reason(process.wait(), self._last_words())
        raise WorkFailed(f"the process that ran it {reason}")

    def _last_words(self) -> str:
        assert self._stderr is not None
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - LAST_BYTES))
        return self._stderr.read().decode(errors="replace")


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process, if it is still there, and all that it started."""
    if process.poll() is not None:
        return
    started: list[psutil.Process] = []
    with suppress(psutil.Error):
        started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for each in started:
        with suppress(psutil.Error):
            each.kill()


def cores() -> int:
    """Return how many this process may use."""
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # not on macOS
    return len(affinity()) if affinity else os.cpu_count() or 1


@contextmanager
def workers(count: int) -> Iterator[Callable[[], AbstractContextManager[Worker]]]:
    """Lend processes to threads, `count` at a time, each of which takes many works: a thread that
    borrows one waits until one is free.

    They share the cores: threads that wait for one another while others have their core take
    several times as long. They keep freed memory, so that their peaks say nothing.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))}
    free: SimpleQueue[Worker] = SimpleQueue()

    @contextmanager
    def borrowed() -> Iterator[Worker]:
        worker = free.get()
        try:
            yield worker
        finally:
            free.put(worker)

    with ExitStack() as started:
        for _ in range(count):
            free.put(started.enter_context(Worker(environment=KEEPS_MEMORY | threads)))
        yield borrowed


@contextmanager
def _full_is_one_line() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(full(Path(tempfile.gettempdir()), error)) from error


def _answer(message: Mapping[str, Any], folder: Path) -> Answer:
    """Return what a message tells, or raise the error that it tells of."""
    if "user_error" in message:
        raise UserError(message["user_error"])
    if "error" in message:
        failure = WorkFailed(message["error"])
        failure.add_note(message["traceback"])
        raise failure
    names = enumerate(message["arrays"])
    arrays = {name: np.load(folder / f"out-{number}.npy") for number, name in names}
    return Answer(message["fields"], arrays)


def _environment() -> dict[str, str]:
    """Return this process's environment, and a path on which this very package comes first."""
    root = str(Path(pocketfocus.__file__).parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([root, inherited]) if inherited else root
    return {**os.environ, "PYTHONPATH": path}


def ended(arguments: Sequence[str], **how: Any) -> subprocess.CompletedProcess[str]:
    """Return how a program ended that has nothing to read; what it wrote, as text."""
    return subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        **how,
    )


def exit_reason(code: int, said: str) -> str:
    """Return how a process ended that gave no result, in one phrase; `said` on standard error."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"died of {name}{LIKELY.get(name, '')}"
    if code == 0:
        return "left no result"
    lines = said.strip().splitlines()
    return f"ended with code {code}: {lines[-1] if lines else 'it said nothing'}"
