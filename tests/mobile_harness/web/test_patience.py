"""Clients that leave, stall, send nonsense or come all at once, over real sockets."""

from __future__ import annotations

import http.client
import json
import logging
import signal
import socket
import ssl
import sys
import threading
import time
from asyncio import BaseEventLoop
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pocketfocus.mobile_harness.web import api, patience
from pocketfocus.mobile_harness.web import server as server_module
from pocketfocus.mobile_harness.web.api import Api
from pocketfocus.mobile_harness.web.files import Served
from pocketfocus.mobile_harness.web.lan import own_context
from pocketfocus.mobile_harness.web.measurement import Judge, Measurement
from pocketfocus.mobile_harness.web.server import make_app
from pocketfocus.run.ending import SIGNALS, as_interrupted
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import TensorSpec, load_manifest
from pocketfocus.run.results import BenchRow
from tests.benchmarks.rows import bench_row

ONNX = "onnx/student-fp32.onnx"
MEASURED = {
    **{"artifact": ONNX, "sha256": "0" * 64, "backend": "wasm", "threads": 1, "runtime": "r"},
    **{"phone": {"name": "A", "os": "B", "browser": "C"}, "load_ms": 1.0, "first_ms": 1.0},
    "times_ms": [1.0],
}


class Taking:
    """A judge that keeps nothing."""

    positions: tuple[int, ...] = (0,)
    repeat: int = 0

    def photo(self) -> bytes:
        raise UserError("the student is gone")

    def take(self, measured: Measurement) -> BenchRow:
        return bench_row(artifact=measured.artifact, device=measured.device)

    def judge(self, measured: Measurement, outputs: bytes) -> Any:
        raise UserError("no student")


Listen = Callable[..., int]


@pytest.fixture
def listen(
    tmp_path: Path,
    small_student: Path,
    make_run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Listen]:
    """listen(...): where a server of a run listens that has little patience."""
    for name, seconds in {"HEADER_S": 1.0, "STALL_S": 0.5, "READ_S": 0.5}.items():
        monkeypatch.setattr(patience, name, seconds)
    make_run(tmp_path / "run", small_student, [ONNX])
    manifest = load_manifest(tmp_path / "run")
    (file,) = manifest.artifacts
    stack = TensorSpec("stack", (9, 3, 64, 64), "float32", (-1.0, 1.0))
    object.__setattr__(file, "outputs", (stack,))
    (tmp_path / "index.html").write_text("page" * 1000)
    (tmp_path / "large").write_bytes(bytes(2**24))
    page = {name: tmp_path / name for name in ("index.html", "large")}
    served = Served(tmp_path / "run", manifest, {file.name: file})
    servers = []

    def listening(
        make_judge: Callable[[Served], Judge] = lambda _: Taking(),
        context: ssl.SSLContext | None = None,
    ) -> int:
        made = Api(served, page, make_judge)
        door = server_module.listen("127.0.0.1", 0)
        server = patience.server_of(make_app(made, "127.0.0.1"), door, context)
        port = int(door.getsockname()[1])
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return port

    yield listening
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)
    said = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert not said, [record.getMessage() for record in said]


@pytest.fixture
def port(listen: Listen) -> int:
    """Where such a server listens."""
    return listen()


def ask(
    port: int, path: str, body: Any = None, context: ssl.SSLContext | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    if context:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    sent = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json"}
    raw = None if body is None else json.dumps(body).encode()
    connection.request("GET" if raw is None else "POST", path, raw, sent)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def half(port: int, path: str = "/api/measurements", kind: str = "json") -> socket.socket:
    """A connection over which the first byte of a body was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    head += f"Origin: http://127.0.0.1:{port}\r\nContent-Type: application/{kind}\r\n"
    connection.sendall((head + "Content-Length: 1000\r\n\r\n{").encode())
    return connection


def connected(port: int) -> socket.socket:
    """A connection over which nothing was said."""
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def test_a_client_that_leaves_says_nothing_in_the_log(port: int) -> None:
    half(port).close()
    time.sleep(0.2)
    assert ask(port, "/")[0] == 200


def test_a_client_that_stalls_is_let_go_and_blocks_nobody(port: int) -> None:
    slow = [half(port) for _ in range(20)]
    started = time.monotonic()
    assert ask(port, "/api/measurements", MEASURED)[0] == 201
    assert time.monotonic() - started < 5
    assert all(b"408" in connection.recv(100) for connection in slow)


def test_uploads_that_trickle_are_let_go_and_block_nobody(port: int) -> None:
    """As many as there may be at once; none is silent for long enough to count as stalled."""
    keys = []
    for number in range(api.UPLOADS + 1):
        phone = {"name": f"{number}", "os": "o", "browser": "b"}
        said = ask(port, "/api/measurements", MEASURED | {"phone": phone})[1]
        keys.append(f"/api/measurements/{json.loads(said)['id']}/outputs")
    *slow, last = [half(port, key, "octet-stream") for key in keys]
    last.sendall(b"{" * 999)
    for _ in range(20):
        for connection in slow:
            with suppress(OSError):
                connection.send(b"{")
        time.sleep(0.1)
    last.settimeout(1)
    assert b"outputs have 442368 bytes, 1000 came" in last.recv(10_000)
    assert all(b"408" in connection.recv(100) for connection in slow)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "half-open TLS"])
def test_connections_without_a_request_are_closed(listen: Listen, tls: bool) -> None:
    context = own_context("127.0.0.1") if tls else None
    port = listen(context=context)
    idle = [connected(port) for _ in range(300)]
    trusting = ssl._create_unverified_context() if tls else None
    assert ask(port, "/", context=trusting)[0] == 200
    assert all(connection.recv(1) == b"" for connection in idle)


def test_a_second_request_has_to_come_whole_too(port: int) -> None:
    connection = connected(port)
    head = f"HEAD / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    connection.sendall(head)
    assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
    connection.sendall(head[:10])
    connection.settimeout(3)
    assert connection.recv(10_000) == b""


def test_one_client_s_silent_connections_make_room(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SILENT", 20)
    monkeypatch.setattr(patience, "HEADER_S", 30.0)
    busy = half(port)
    assert ask(port, "/")[0] == 200
    idle = [connected(port) for _ in range(25)]
    assert ask(port, "/")[0] == 200
    for connection in idle[:5]:
        assert connection.recv(1) == b""
    idle[-1].settimeout(0.2)
    with pytest.raises(TimeoutError):
        idle[-1].recv(1)
    assert b"408" in busy.recv(100), "it had asked something"


def test_who_does_not_read_is_let_go(port: int) -> None:
    connection = connected(port)
    connection.sendall(f"GET /large HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    time.sleep(1.5)
    with connection.makefile("rb") as answer, suppress(ConnectionError):
        assert len(answer.read()) < 2**24


def test_files_are_given_while_the_judge_is_busy(listen: Listen) -> None:
    """More ask for the judge than there are threads."""
    ready = threading.Event()

    def late(_: Served) -> Judge:
        ready.wait(30)
        return Taking()

    port = listen(late)
    try:
        with ThreadPoolExecutor(60) as clients:
            asked = [clients.submit(ask, port, "/api/golden") for _ in range(60)]
            started = time.monotonic()
            assert ask(port, f"/api/files/{ONNX}")[0] == 200
            took = time.monotonic() - started
            ready.set()
            assert {each.result()[0] for each in asked} == {409}
    finally:
        ready.set()
    assert took < 5


def test_two_hundred_clients_get_their_files(port: int) -> None:
    with ThreadPoolExecutor(200) as clients:
        found = list(clients.map(lambda _: ask(port, f"/api/files/{ONNX}"), range(200)))
    assert {status for status, _ in found} == {200}
    assert {content for _, content in found} == {ONNX.encode() * 100}


def test_a_file_that_changed_is_not_given(port: int, tmp_path: Path) -> None:
    path = tmp_path / "run" / ONNX
    path.write_bytes(path.read_bytes()[::-1])
    status, said = ask(port, f"/api/files/{ONNX}")
    assert status == 409 and b"changed" in said


def test_what_goes_wrong_with_the_run_is_said(port: int) -> None:
    assert ask(port, "/api/golden") == (409, b'{"error":"the student is gone"}')


def test_results_are_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MOST_RESULTS", 2)
    names = ("a", "b", "a", "c")
    phones = [MEASURED | {"phone": {"name": n, "os": "o", "browser": "b"}} for n in names]
    assert [ask(port, "/api/measurements", each)[0] for each in phones] == [201, 201, 201, 429]


def test_names_are_shown_as_they_are(port: int) -> None:
    phone = {"name": "a\u202egnp $\\frac$", "os": "o", "browser": "b"}
    status, said = ask(port, "/api/measurements", MEASURED | {"phone": phone})
    assert status == 201
    assert json.loads(said)["row"]["device"] == "a\\u202egnp $\\frac$, b (wasm)"


@pytest.mark.parametrize("number", [signal.SIGINT, *SIGNALS])
def test_who_ends_it_as_it_starts_is_told_no_more(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, begun, made = list[object](), BaseEventLoop.__init__, list[BaseEventLoop]()

    def interrupted(loop: BaseEventLoop) -> None:
        signal.raise_signal(number)
        begun(loop)
        made.append(loop)

    monkeypatch.setattr(BaseEventLoop, "__init__", interrupted)
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with pytest.raises(KeyboardInterrupt), as_interrupted(*SIGNALS):
        patience.Loop()
    assert made and not said
