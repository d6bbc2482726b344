"""A phone's browser as a device: it comes to this host, so `bench` and `verify` serve and wait.

Its files are the run's ONNX files; its rows are those that the page's Measure tab sends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pocketfocus.benchmarks.latency import BENCH_FILE
from pocketfocus.benchmarks.verify import VERIFY_FILE
from pocketfocus.mobile_harness.options import Absent, Options
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import Row

if TYPE_CHECKING:
    import uvicorn

KIND = "browser"
LAN = "lan"


def connect(address: str, options: Options) -> tuple[Absent, ...]:
    """A browser is not there until it comes: what it has not measured is `not-run`."""
    from pocketfocus.mobile_harness.web.files import page_files

    check(address)
    try:
        page_files()
    except UserError as error:
        return (Absent(KIND, str(error)),)
    why = "none has come: `pocketfocus serve DIR` or --device browser:lan, then open the address"
    return (Absent(KIND, why),)


def check(address: str) -> None:
    """UserError for another address than none or `lan`."""
    if address not in ("", LAN):
        raise UserError(f"unknown address '{address}': choose --device browser or browser:lan")


@dataclass
class Visit:
    """Waiting for a browser, until one device has measured every file, or none came in time.

    Attributes:
        files: names of what is to be measured.
        wait_s: seconds without a row after which the visit is over.
        rows: what came, by the file of results it is kept in.
    """

    files: frozenset[str]
    wait_s: float
    rows: dict[str, list[Row]] = field(default_factory=dict)
    _came: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    def take(self, bench: Row, verify: Row) -> None:
        """Both rows of a file that a browser measured."""
        for name, row in ((BENCH_FILE, bench), (VERIFY_FILE, verify)):
            same = [r for r in self.rows.get(name, []) if not self._replaced(r, row)]
            self.rows[name] = [*same, row]
        done = {r["artifact"] for r in self.rows[VERIFY_FILE] if r["device"] == verify["device"]}
        if done >= self.files:
            self._over.set()
        self._came.set()

    @staticmethod
    def _replaced(old: Row, new: Row) -> bool:
        return (old["artifact"], old["device"]) == (new["artifact"], new["device"])

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


def visit(
    folder: Path, address: str, results: str, options: Options, say: Callable[[str], None]
) -> list[Row]:
    """Serve `folder` until a browser has measured its ONNX files; the rows it sent of `results`.

    None comes, or Ctrl-C: what came until then, maybe nothing.
    """
    from pocketfocus.mobile_harness.web.files import load_served
    from pocketfocus.mobile_harness.web.server import Network, serve

    check(address)
    waiting = Visit(frozenset(load_served(folder).artifacts), options.visit_s)
    say(f"open it in a phone's browser and measure all files; waiting {options.visit_s:g} s")
    serve(folder, Network(lan=address == LAN, port=0), say, waiting)
    return waiting.rows.get(results, [])
