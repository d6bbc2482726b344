"""`pocketfocus serve`: the page, the run's ONNX files, and what browsers send back.

Routes: `/` and the built page's files; `/api/run`; `/api/files/NAME`; `/api/golden`; and
`POST /api/measurements`, then `POST /api/measurements/ID/outputs`.
"""

from __future__ import annotations

import asyncio
import io
import signal
import socket
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segno
import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from pocketfocus.mobile_harness.web.files import Served, load_served, page_files, plain_file
from pocketfocus.mobile_harness.web.guard import (
    TOKEN,
    OneTimeToken,
    SafeHeaders,
    SameOrigin,
    body_of,
    new_token,
    refusal,
)
from pocketfocus.mobile_harness.web.lan import check_certificate, lan_address, write_certificate
from pocketfocus.run.errors import UserError

if TYPE_CHECKING:
    from pocketfocus.mobile_harness.web.results import Host, Measurement
    from pocketfocus.mobile_harness.web.visit import Visit
    from pocketfocus.run.files import Row

LOOPBACK = "127.0.0.1"
PORT = 8765
JSON_BYTES = 2 * 2**20  # 50,000 times at most
WAITING = 64  # measurements whose outputs have not come yet
MEDIA = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}


class Api:
    """The routes, over one run."""

    def __init__(
        self,
        served: Served,
        page: Mapping[str, Path],
        judged: Callable[[Row, Row], None] = lambda bench, verify: None,
    ) -> None:
        self.served = served
        self.judged = judged  # called with both rows of a file when they are kept
        self.page = page
        self.waiting: OrderedDict[str, tuple[Measurement, Row]] = OrderedDict()
        self._host: Host | None = None
        self.one_upload = asyncio.Semaphore(2)  # stacks are megabytes each

    def routes(self) -> list[Route]:
        """Everything there is; any other path is 404."""
        return [
            Route("/api/run", self.run),
            Route("/api/files/{name:path}", self.file),
            Route("/api/golden", self.golden),
            Route("/api/measurements", self.measurement, methods=["POST"]),
            Route("/api/measurements/{key}/outputs", self.outputs, methods=["POST"]),
            Route("/{name:path}", self.asset),
        ]

    async def asset(self, request: Request) -> Response:
        """A file of the built page."""
        path = self.page.get(request.path_params["name"] or "index.html")
        if path is None or not path.is_file():
            return refusal(404, "no such file")
        return FileResponse(path, media_type=MEDIA.get(path.suffix))

    async def run(self, request: Request) -> Response:
        """What the run holds."""
        return JSONResponse(self.served.describe())

    async def file(self, request: Request) -> Response:
        """An ONNX file that the manifest lists."""
        name = request.path_params["name"]
        path = plain_file(self.served.folder, name) if name in self.served.artifacts else None
        if path is None:
            return refusal(404, "the manifest lists no such file")
        return FileResponse(path, media_type="application/octet-stream")

    async def golden(self, request: Request) -> Response:
        """The golden photo, raw float32; its positions are in a header."""
        from pocketfocus.benchmarks.golden import POSITIONS

        raw = await run_in_threadpool(lambda: self.host().inputs())
        positions = {"X-Positions": ",".join(map(str, POSITIONS))}
        return Response(raw, media_type="application/octet-stream", headers=positions)

    async def measurement(self, request: Request) -> Response:
        """Take times, answer with the row and where the outputs go."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return refusal(415, "a measurement is application/json")
        body = await body_of(request, JSON_BYTES)
        if body is None:
            return refusal(413, f"a measurement has at most {JSON_BYTES} bytes")
        try:
            measured = await run_in_threadpool(parse, body)
        except ValidationError as error:
            first = error.errors()[0]
            status = 400 if first["type"] == "json_invalid" else 422
            where = ".".join(map(str, first["loc"]))
            return refusal(status, f"{where or 'body'}: {first['msg']}")
        try:
            row = await run_in_threadpool(lambda: self.host().take(measured))
        except UserError as error:
            return refusal(409, str(error))
        key = new_token()
        self.waiting[key] = measured, row
        while len(self.waiting) > WAITING:
            self.waiting.popitem(last=False)
        return JSONResponse({"id": key, "row": row}, 201)

    async def outputs(self, request: Request) -> Response:
        """Take the golden outputs of a measurement, answer with the verdict."""
        from pocketfocus.benchmarks.golden import POSITIONS

        key = request.path_params["key"]
        if key not in self.waiting:
            return refusal(404, "no such measurement waits for outputs")
        if request.headers.get("content-type") != "application/octet-stream":
            return refusal(415, "outputs are application/octet-stream")
        size = len(POSITIONS) * self.served.stack_bytes
        async with self.one_upload:
            body = await body_of(request, size)
            if body is None:
                return refusal(413, f"outputs have {size} bytes")
            if len(body) != size:
                return refusal(422, f"outputs have {size} bytes, {len(body)} came")
            found = self.waiting.pop(key, None)
            if found is None:
                return refusal(404, "no such measurement waits for outputs")
            measured, times = found
            try:
                row = await run_in_threadpool(lambda: self.host().judge(measured, body))
            except UserError as error:
                return refusal(409, str(error))
        self.judged(times, row)
        return JSONResponse({"row": row}, 201)

    def host(self) -> Host:
        """What judges; its import takes seconds, so not before it is needed."""
        if self._host is None:
            from pocketfocus.mobile_harness.web.results import Host

            self._host = Host(self.served)
        return self._host


def parse(body: bytes) -> Measurement:
    """A measurement from JSON; pydantic's ValidationError when it is none."""
    from pocketfocus.mobile_harness.web.results import Measurement

    return Measurement.model_validate_json(body)


def make_app(
    api: Api, address: str, token: str | None = None, opened: Callable[[str], None] = lambda _: None
) -> Starlette:
    """The application; with a token only those come in who bring it."""
    middleware = [
        Middleware(SafeHeaders),
        Middleware(TrustedHostMiddleware, allowed_hosts=[address, "localhost"]),
        Middleware(SameOrigin),
    ]
    if token is not None:
        middleware.append(Middleware(OneTimeToken, token=token, opened=opened))
    return Starlette(routes=api.routes(), middleware=middleware)


@dataclass(frozen=True)
class Network:
    """Where to listen.

    Attributes:
        lan: on the network, over HTTPS and with one-time tokens; else on loopback.
        port: 0 for any.
        certificate: PEM files of a certificate (with its chain) and its key that phones trust, for
            `lan`; None for one that this machine makes.
    """

    lan: bool = False
    port: int = PORT
    certificate: tuple[Path, Path] | None = None


def serve(
    folder: Path, network: Network, say: Callable[[str], None], visit: Visit | None = None
) -> None:
    """Serve a run until Ctrl-C or SIGTERM, or until a visit is over.

    UserError for a run, page or certificate that is not there, or a taken port.
    """
    served, page = load_served(folder), page_files()
    address = lan_address() if network.lan else LOOPBACK
    with ExitStack() as stack:
        listener = stack.enter_context(listen(address, network.port))
        port = listener.getsockname()[1]
        base = f"{'https' if network.lan else 'http'}://{address}:{port}/"
        place = "#measure" if visit else ""
        token = new_token() if network.lan else None
        secure: dict[str, Any] = {}
        if network.lan:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            certificate, key = network.certificate or write_certificate(scratch, address)
            check_certificate(certificate, key)
            secure = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}

        def invite(token: str) -> None:
            say("one device came in; for one more:")
            say(invitation(f"{base}?{TOKEN}={token}{place}"))

        api = Api(served, page, visit.take if visit else lambda bench, verify: None)
        config = uvicorn.Config(
            make_app(api, address, token, invite),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=3,
            limit_concurrency=256,
            **secure,
        )
        server = uvicorn.Server(config)
        if visit:
            stack.enter_context(visit.ends(server))
        with suppress(KeyboardInterrupt), interrupted_by(signal.SIGTERM, signal.SIGHUP):
            say(invitation(f"{base}?{TOKEN}={token}{place}" if token else base + place))
            say(hint(network, port))
            say("Ctrl-C stops.")
            server.run(sockets=[listener])
        say("stopped")


def hint(network: Network, port: int) -> str:
    """What a phone's owner has to know of the address."""
    reverse = f"`adb reverse tcp:{port} tcp:{port}`"
    if not network.lan:
        return f"On this machine only. A phone: --lan, or by USB {reverse}."
    once = "Whoever has the address can come in once."
    if network.certificate:
        return once
    return (
        "The certificate is this machine's own: the phone warns once, go on to the page. Such a "
        "phone keeps no copy for when the network is gone; it does with --cert and --key that it "
        f"trusts, or by USB without --lan, {reverse}. {once}"
    )


@contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Let these signals end the block as Ctrl-C does, so that what it opened is cleaned up."""
    before = [(each, signal.signal(each, signal.default_int_handler)) for each in signals]
    try:
        yield
    finally:
        for each, handler in before:
            signal.signal(each, handler)


def listen(address: str, port: int) -> socket.socket:
    """A listening socket; UserError when the port cannot be had."""
    try:
        return socket.create_server((address, port), backlog=256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen on {address}:{port} ({reason}): choose another --port, or 0 for any"
        ) from error


def invitation(url: str) -> str:
    """The address and its QR code for a terminal."""
    picture = io.StringIO()
    segno.make(url, micro=False).terminal(picture, compact=True)
    return f"{picture.getvalue()}{url}"
