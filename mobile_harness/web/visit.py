"""A phone's browser as a device: it comes to this host, so `bench` and `verify` serve and wait.

Its files are the run's ONNX files; its rows are those that the page's Measure tab sends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pocketfocus.mobile_harness.options import Absent, Options
from pocketfocus.mobile_harness.web.files import page_files
from pocketfocus.run.errors import UserError
from pocketfocus.run.results import BenchRow, VerifyRow

if TYPE_CHECKING:
    import uvicorn

KIND = "browser"
LAN = "lan"


def connect(address: str, options: Options) -> tuple[Absent, ...]:
    """Return an absent device: a browser is not there until it comes."""
    check_address(address)
    try:
        page_files()
    except UserError as error:
        return (Absent(KIND, str(error)),)
    why = "none has come: `pocketfocus serve DIR` or --device browser:lan, then open the address"
    return (Absent(KIND, why),)


def check_address(address: str) -> None:
    """Raise UserError for another address than none or `lan`."""
    if address not in ("", LAN):
        raise UserError(f"unknown address '{address}': choose --device browser or browser:lan")


@dataclass
class Visit:
    """Waiting for a browser, until one device has measured every file, or none came in time.

    Attributes:
        files: names of what is to be measured.
        wait_s: seconds without a row after which the visit is over.
        rows: what came, of bench.json and of verify.json, by the artifact and the device.
    """

    files: frozenset[str]
    wait_s: float
    rows: dict[tuple[str, str], tuple[BenchRow, VerifyRow]] = field(default_factory=dict)
    _came: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    def take(self, bench: BenchRow, verify: VerifyRow) -> None:
        """Take both rows of a file that a browser measured."""
        self.rows[verify.artifact, verify.device] = bench, verify
        if self.files <= {name for name, device in self.rows if device == verify.device}:
            self._over.set()
        self._came.set()

    @contextmanager
    def ends(self, server: uvicorn.Server) -> Iterator[None]:
        """Let the server stop when the visit is over."""

        def watch() -> None:
            while not self._over.is_set():
                if not self._came.wait(self.wait_s):
                    break
                self._came.clear()
            server.should_exit = True

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            self._came.set()
            watcher.join()
