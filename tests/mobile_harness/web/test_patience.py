"""Clients that leave, stall, send nonsense or come all at once, over real sockets."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pocketfocus.mobile_harness.web import api, patience
from pocketfocus.mobile_harness.web.api import Api
from pocketfocus.mobile_harness.web.files import Served
from pocketfocus.mobile_harness.web.measurement import Measurement
from pocketfocus.mobile_harness.web.server import make_app
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

    def photo(self) -> bytes:
        raise UserError("the student is gone")

    def take(self, measured: Measurement) -> BenchRow:
        return bench_row(artifact=measured.artifact, device=measured.device)

    def judge(self, measured: Measurement, outputs: bytes) -> Any:
        raise UserError("no student")


@pytest.fixture
def port(
    tmp_path: Path,
    small_student: Path,
    make_run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[int]:
    """Where a server of a run listens that has little patience."""
    for name, seconds in {"HEADER_S": 1.0, "STALL_S": 0.5}.items():
        monkeypatch.setattr(patience, name, seconds)
    make_run(tmp_path / "run", small_student, [ONNX])
    manifest = load_manifest(tmp_path / "run")
    (file,) = manifest.artifacts
    stack = TensorSpec("stack", (9, 3, 64, 64), "float32", (-1.0, 1.0))
    object.__setattr__(file, "outputs", (stack,))
    (tmp_path / "index.html").write_text("page" * 1000)
    served = Served(tmp_path / "run", manifest, {file.name: file})
    made = Api(served, {"index.html": tmp_path / "index.html"}, lambda _: Taking())
    server = patience.server_of(make_app(made, "127.0.0.1"))
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)
    listener.close()
    said = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert not said, [record.getMessage() for record in said]


def ask(port: int, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    sent = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json"} | headers
    raw = None if body is None else json.dumps(body).encode()
    connection.request("GET" if raw is None else "POST", path, raw, sent)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def half(port: int) -> socket.socket:
    """A connection over which half a measurement was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST /api/measurements HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    head += f"Origin: http://127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    connection.sendall((head + "Content-Length: 1000\r\n\r\n{").encode())
    return connection


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


def test_connections_without_a_request_are_closed(port: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(300)]
    assert ask(port, "/")[0] == 200
    assert all(connection.recv(1) == b"" for connection in idle)


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
