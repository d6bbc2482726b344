"""What the server gives and what it refuses, over real sockets, and over the bare application."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketfocus.benchmarks.browser import trend
from pocketfocus.benchmarks.golden import POSITIONS
from pocketfocus.benchmarks.report import render
from pocketfocus.data.optics import one_hot
from pocketfocus.mobile_harness.web.files import load_served, page_files
from pocketfocus.mobile_harness.web.lan import lan_address, make_certificate
from pocketfocus.mobile_harness.web.measurement import Sustained
from pocketfocus.models.student import load_student
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json
from tests.mobile_harness.web.conftest import Serving, start_on_network

ONNX = "/api/files/onnx/student-int8.onnx"


def ask(
    serving: Serving,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """One request, its path sent as it is: no client mends `..` here."""
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=240)
    sent = {"Origin": f"http://127.0.0.1:{serving.port}"} | (headers or {})
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content


def send(serving: Serving, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """A measurement, and what the host says to it."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Type": "application/json"} | headers
    status, _, content = ask(serving, "/api/measurements", "POST", raw, fields)
    return status, json.loads(content)


def send_in_chunks(serving: Serving, size: int) -> int:
    """The status of a measurement of `size` blanks whose length is not announced."""
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=60)
    fields = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{serving.port}"}
    blanks = (b" " * min(2**16, size - at) for at in range(0, size, 2**16))
    connection.request("POST", "/api/measurements", blanks, fields, encode_chunked=True)
    return connection.getresponse().status


@pytest.fixture
def measurement(serving: Serving) -> dict[str, Any]:
    run = json.loads(ask(serving, "/api/run")[2])
    file = next(f for f in run["files"] if f["precision"] == "int8")
    return {
        "artifact": file["name"],
        "sha256": file["sha256"],
        "backend": "wasm",
        "threads": 2,
        "runtime": "onnxruntime-web 1",
        "phone": {"name": "A", "os": "B", "browser": "C", "chip": None, "cores": 8},
        "load_ms": 5.0,
        "first_ms": 4.0,
        "times_ms": [1.0, 2.0, 3.0],
        "sustained": {"seconds": 10.0, "times_ms": [1.0, 1.0, 1.0, 2.0, 2.0]},
        "heap_mib": 64.0,
        "memory_mib": 321.5,
    }


def test_every_answer_has_the_headers(serving: Serving) -> None:
    for path, status in (("/", 200), ("/worker.js", 200), (ONNX, 200), ("/nothing", 404)):
        found, headers, _ = ask(serving, path)
        assert found == status
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control")]
    assert ask(serving, "/ort/ort-wasm-simd-threaded.wasm")[1]["content-type"] == "application/wasm"


def test_only_listed_files_are_given(serving: Serving) -> None:
    assert ask(serving, ONNX)[2] == (serving.run / "onnx/student-int8.onnx").read_bytes()
    for path in (
        "/api/files/manifest.json",
        "/api/files/student/config.json",
        "/api/files/onnx/../manifest.json",
        "/api/files/../manifest.json",
        "/api/files/%2e%2e/%2e%2e/etc/passwd",
        "/../server.py",
        "/..%2fserver.py",
        "/ort/../../src/app.ts",
        "//etc/passwd",
        "/api/files/" + str(serving.run / "onnx/student-int8.onnx"),
    ):
        assert ask(serving, path)[0] == 404, path


def test_a_link_in_the_place_of_a_file_is_refused(serving: Serving, tmp_path: Path) -> None:
    path, moved = serving.run / "onnx/student-int8.onnx", tmp_path / "moved.onnx"
    shutil.move(path, moved)
    path.symlink_to(moved)
    try:
        assert ask(serving, ONNX)[0] == 404
        with pytest.raises(UserError, match="is a link"):
            load_served(serving.run)
    finally:
        path.unlink()
        shutil.move(moved, path)
    assert ask(serving, ONNX)[0] == 200


def test_the_page_is_told_what_the_files_take(serving: Serving) -> None:
    run = json.loads(ask(serving, "/api/run")[2])
    assert (run["size"], run["multiple"]) == ([64, 64], 8)
    for file in run["files"]:
        assert file["sizes"] == [[64, 64]]
        assert file["outputs"] == ["stack", "sharp", "detail", "dioptres", "positions"]


def test_other_sites_and_names_are_refused(serving: Serving, measurement: dict[str, Any]) -> None:
    assert send(serving, measurement, Origin="http://elsewhere.example")[0] == 403
    assert ask(serving, "/", headers={"Host": "elsewhere.example"})[0] == 400  # DNS rebinding
    assert ask(serving, "/api/run", "DELETE")[0] == 405


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (b"{", 400),
        (b"[]", 422),
        ({"times_ms": []}, 422),
        ({"times_ms": ["1"]}, 422),
        ({"times_ms": [-1.0]}, 422),
        ({"threads": 0}, 422),
        ({"extra": 1}, 422),
        ({"backend": "cuda"}, 422),
        ({"phone": {"name": "\x1b[31m", "os": "B", "browser": "C"}}, 422),
        ({"artifact": "onnx/other.onnx"}, 409),
        ({"sha256": "0" * 64}, 409),
    ],
)
def test_malformed_measurements_are_refused(
    serving: Serving, measurement: dict[str, Any], change: Any, status: int
) -> None:
    body = change if isinstance(change, bytes) else measurement | change
    found, answer = send(serving, body)
    assert found == status
    assert answer["error"]


def test_wrong_types_and_sizes_are_refused(serving: Serving, measurement: dict[str, Any]) -> None:
    assert send(serving, measurement, **{"Content-Type": "text/plain"})[0] == 415
    assert send(serving, b" " * (2 * 2**20 + 1))[0] == 413
    assert send_in_chunks(serving, 2 * 2**20 + 1) == 413  # of unannounced length
    status, answer = send(serving, measurement)
    assert status == 201
    path = f"/api/measurements/{answer['id']}/outputs"
    octets = {"Content-Type": "application/octet-stream"}
    size = len(POSITIONS) * 9 * 3 * 64 * 64 * 4
    assert ask(serving, path, "POST", bytes(8), octets)[0] == 422
    assert ask(serving, path, "POST", bytes(size + 1), octets)[0] == 413
    assert ask(serving, "/api/measurements/none/outputs", "POST", bytes(8), octets)[0] == 404


def test_the_host_judges_outputs_and_keeps_the_rows(
    serving: Serving, measurement: dict[str, Any], small_student: Path
) -> None:
    status, raw_headers, raw = ask(serving, "/api/golden")
    assert status == 200
    assert raw_headers["x-positions"] == ",".join(map(str, POSITIONS))
    photo = torch.from_numpy(np.frombuffer(raw, "<f4").reshape(1, 3, 64, 64).copy())
    student = load_student(small_student)
    with torch.inference_mode():
        right = np.stack([student.stack(photo, one_hot(p)).numpy() for p in POSITIONS])
    for name, stacks, verdict in (("right", right, "pass"), ("wrong", 0 * right, "fail")):
        about = {**measurement["phone"], "name": name}
        key = send(serving, measurement | {"phone": about})[1]["id"]
        octets = {"Content-Type": "application/octet-stream"}
        path = f"/api/measurements/{key}/outputs"
        status, _, content = ask(serving, path, "POST", stacks.astype("<f4").tobytes(), octets)
        assert status == 201
        assert json.loads(content)["row"]["status"] == verdict
        bench, verify = (
            [r for r in read_json(serving.run / file)["rows"] if r["device"].startswith(name)]
            for file in ("bench.json", "verify.json")
        )
        assert [row["status"] for row in verify] == [verdict]
        assert bench[0]["p50_ms"] == 2.0
        assert bench[0]["sha256"] == verify[0]["sha256"] == measurement["sha256"]
        assert bench[0]["sustained"]["slower"] == 2.0
    page = render(serving.run)
    assert "right, C (wasm)" in page
    line = next(line for line in page.splitlines() if "1 in C" in line and "right, C" in line)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", line)
    assert cells[2:10] == ["2 of 8", "64.0", "321.5", "10", "5", "1.0", "2.0", "2.00"]
    assert "too few calls (5)" in cells[10]


def test_fifty_clients_at_once_are_served(serving: Serving) -> None:
    """All fifty are in the middle of their request before any of them ends it."""
    expected = (serving.run / "onnx/student-int8.onnx").read_bytes()
    all_in = threading.Barrier(50, timeout=30)

    def client(number: int) -> tuple[bytes, bytes]:
        with socket.create_connection(("127.0.0.1", serving.port), timeout=60) as line:
            line.sendall(f"GET {ONNX} HTTP/1.1\r\nHost: 127.0.0.1:{serving.port}\r\n".encode())
            all_in.wait()
            line.sendall(b"Connection: close\r\n\r\n")
            with line.makefile("rb") as answer:
                head, _, body = answer.read().partition(b"\r\n\r\n")
        return head.splitlines()[0], body

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(client, range(50)))
    assert {status for status, _ in answers} == {b"HTTP/1.1 200 OK"}
    assert all(body == expected for _, body in answers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stops_cleanly(
    built_page: Path, web_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A client that says nothing holds nothing up, and no private key stays behind."""
    server = start_on_network(web_run, {"TMPDIR": str(tmp_path)})
    host, port = re.findall(r"https://([\d.]+):(\d+)/", server.url)[0]
    assert not list(tmp_path.rglob("*")), "killed now, it would leave its key"
    with socket.create_connection((host, int(port)), timeout=30):
        assert server.stop(number) == 0
    assert server.process.stdout
    rest = server.process.stdout.read()
    assert rest.endswith("stopped\n")
    assert "Traceback" not in rest
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5).close()


def test_on_a_network_each_address_lets_one_device_in(built_page: Path, web_run: Path) -> None:
    server = start_on_network(web_run)
    host, port, token = re.findall(r"https://([\d.]+):(\d+)/\?token=(\S+)", server.url)[0]

    def get(path: str, cookie: str = "") -> http.client.HTTPResponse:
        trusting = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, int(port), timeout=30, context=trusting)
        connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
        return connection.getresponse()

    try:
        assert get("/").status == 403
        assert get("/api/run").status == 403
        assert get("/?token=wrong").status == 403
        first = get(f"/?token={token}")
        assert first.status == 303
        cookie = first.headers["Set-Cookie"]
        assert all(word in cookie for word in ("HttpOnly", "Secure", "SameSite=lax", "__Host-"))
        assert get(f"/?token={token}").status == 403  # it was good once
        assert get("/api/run", cookie.partition(";")[0]).status == 200
        assert get("/api/run", "__Host-pocketfocus=guess").status == 403
    finally:
        assert server.stop() == 0


def test_a_certificate_that_phones_trust_is_used(
    built_page: Path, web_run: Path, tmp_path: Path
) -> None:
    address = lan_address()
    cert, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    for path, content in zip((cert, key), make_certificate(address), strict=True):
        path.write_bytes(content)
    server = start_on_network(web_run, None, "--cert", str(cert), "--key", str(key))
    try:
        port, token = re.findall(r":(\d+)/\?token=(\S+)", server.url)[0]
        trusting = ssl.create_default_context(cafile=str(cert))  # and nothing else
        connection = http.client.HTTPSConnection(address, int(port), timeout=30, context=trusting)
        connection.request("GET", f"/?token={token}")
        assert connection.getresponse().status == 303
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lan", "--cert", "a.pem"], "go together"),
        (["--cert", "a.pem", "--key", "a.pem"], "go together"),
        (["--lan", "--cert", "README.md", "--key", "README.md"], "are no certificate with its key"),
    ],
)
def test_a_wrong_certificate_is_one_line(
    built_page: Path, web_run: Path, options: list[str], message: str
) -> None:
    command = [sys.executable, "-m", "pocketfocus", "serve", str(web_run), "--port", "0", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_bad_input_is_one_line(web_run: Path, tmp_path: Path, small_student: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="run `make web`"):
        page_files(tmp_path / "empty")
    command = [sys.executable, "-m", "pocketfocus", "serve", str(tmp_path / "empty")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1


def test_trend_compares_the_ends_of_a_sustained_run() -> None:
    found = trend(Sustained(seconds=1.0, times_ms=[10.0, 10.0, 99.0, 15.0, 15.0]))
    assert (found.first_p50_ms, found.last_p50_ms, found.slower) == (10.0, 15.0, 1.5)
    assert [*found.course] == [(0.01, 10), (0.02, 10), (0.12, 99), (0.13, 15), (0.15, 15)]
    long = trend(Sustained(seconds=9.0, times_ms=[1.0] * 3000 + [2.0] * 3000))
    assert len(long.course) == 60
    assert (long.course[0], long.course[-1]) == ((0.1, 1.0), (9.0, 2.0))
