"""A stand-in of the Hub's HTTP interface: what an upload of a folder asks for, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 50_000  # bytes, from which a file goes by LFS


@dataclass
class Hub:
    """One server: what it was sent, and how it answers."""

    token: str
    refuses: bool = False
    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of a POST."""
        if self.refuses:
            return 403, {"error": f"the token {self.token} may not write"}
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            about = json.loads(body)
            name = f"{about['organization']}/{about['name']}"
            self.repositories[name] = about
            return 200, {"url": f"{self.url}/{name}"}
        name = path.removeprefix("/api/models/").removeprefix("/").split(".git")[0]
        name = "/".join(name.split("/")[:2])
        if name not in self.repositories:
            return 404, {"error": f"no {name}"}
        if "/preupload/" in path:
            return 200, {"files": [self.mode(each) for each in json.loads(body)["files"]]}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.url}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        assert "/commit/" in path, path
        self.commit(body)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{'a' * 40}", "commitOid": "a" * 40}

    def mode(self, about: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if about["size"] >= LARGE else "regular"
        return {"path": about["path"], "uploadMode": mode, "shouldIgnore": False}

    def commit(self, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.commits.append(value["summary"])
            elif entry["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            else:
                self.files[value["path"]] = self.large[value["oid"]]


@contextmanager
def listening(hub: Hub) -> Iterator[Hub]:
    """Answer on loopback, in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def send(self, status: int, content: Any) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_POST(self) -> None:
            body = self.body()
            if self.path != "/api/validate-yaml":
                assert self.headers["Authorization"] in (f"Bearer {hub.token}", None), "the token"
            self.send(*hub.answer(self.path, body))

        def do_PUT(self) -> None:
            body = self.body()
            oid = self.path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            hub.large[oid] = body
            self.send(200, {})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
