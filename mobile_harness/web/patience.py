"""How long the server waits for its clients: one that sends nothing, or slowly, is let go."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import ssl
from contextlib import suppress

import h11
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from pocketfocus.run.ending import SIGNALS, uninterrupted

HEADER_S = 10.0  # until a TLS handshake has ended, and then until a request's headers are there
STALL_S = 10.0  # between two parts of a body
PACE = 512 * 2**10  # bytes a second of a body, `STALL_S` after it began
READ_S = 30.0  # until some of an answer is taken
SILENT = 256  # connections of one client that have asked nothing yet
KEPT_FILES = 128  # of those that the process may open, for everything but connections
MOST_CONNECTIONS = 4096


class Door(socket.socket):
    """A listening socket. A client that holds too many connections without a request loses the
    oldest of these, one whose TLS handshake never ends included: it stands in nobody's way."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(fileno=listener.detach())
        self.room = room_for_connections()
        self.silent: dict[tuple[str, int], socket.socket] = {}

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        """Return the next connection and its client's address."""
        connection, client = super().accept()
        self.silent = {each: held for each, held in self.silent.items() if held.fileno() >= 0}
        own = [each for each in self.silent if each[0] == client[0]]
        if len(own) >= SILENT:
            self._close(own[0])
        elif len(self.silent) >= self.room // 2:
            self._close(next(iter(self.silent)))
        self.silent[client] = connection
        return connection, client

    def heard(self, client: tuple[str, int] | None) -> None:
        """Let a connection that has asked something stay."""
        if client:
            self.silent.pop(client, None)

    def _close(self, client: tuple[str, int]) -> None:
        with suppress(OSError):
            self.silent.pop(client).shutdown(socket.SHUT_RDWR)


class Loop(asyncio.SelectorEventLoop):
    """An event loop in which a TLS handshake has to end in time."""

    def __init__(self) -> None:
        with uninterrupted(signal.SIGINT, *SIGNALS):  # a loop that is half made cannot be closed
            super().__init__()

    async def create_server(self, *words, **options):  # type: ignore[no-untyped-def]
        """Listen."""
        if options.get("ssl"):
            options["ssl_handshake_timeout"] = HEADER_S
        return await super().create_server(*words, **options)


class Impatient(H11Protocol):
    """A connection that is closed when no request comes of it, or when nobody takes the answer."""

    door: Door
    request_timer: asyncio.TimerHandle | None = None
    reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self.request_timer = self._closes_in(HEADER_S)

    def data_received(self, data: bytes) -> None:
        """Wait on while a request's headers are not complete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self.door.heard(self.client)
            cancel(self.request_timer)
            self.request_timer = None
        elif self.request_timer is None:
            self.request_timer = self._closes_in(HEADER_S)

    def pause_writing(self) -> None:
        """Wait until some of the answer was taken."""
        super().pause_writing()
        self.reader_timer = self._closes_in(READ_S)

    def resume_writing(self) -> None:
        """Go on."""
        cancel(self.reader_timer)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        cancel(self.request_timer)
        cancel(self.reader_timer)
        super().connection_lost(exc)

    def _closes_in(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)


def cancel(timer: asyncio.TimerHandle | None) -> None:
    """Cancel a timer, if there is one."""
    if timer:
        timer.cancel()


def room_for_connections() -> int:
    """Return how many connections there may be, each with a file that it is given, after the
    system was asked for more."""
    wanted = 2 * MOST_CONNECTIONS + KEPT_FILES
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    if files != resource.RLIM_INFINITY and files < more:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, most))
            files = more
    return min(MOST_CONNECTIONS, max(64, (min(files, wanted) - KEPT_FILES) // 2))


def server_of(app: ASGIApp, door: Door, context: ssl.SSLContext | None = None) -> uvicorn.Server:
    """Return a server of the application, over TLS where there is a context."""
    config = uvicorn.Config(
        app,
        http=type("AtTheDoor", (Impatient,), {"door": door}),
        loop=f"{__name__}:{Loop.__name__}",
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        limit_concurrency=door.room,
        ssl_context_factory=(lambda config, usual: context) if context else None,
    )
    return uvicorn.Server(config)


async def body_of(request: Request, limit: int) -> bytes | None:
    """Return the request's body, or None when it has more than `limit` bytes; no more is kept.

    TimeoutError for a client that stalls or trickles, ClientDisconnect for one that leaves.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > limit:
        return None
    body, parts = bytearray(), request.stream()
    now = asyncio.get_running_loop().time
    began = now()
    while True:
        async with asyncio.timeout_at(STALL_S + min(now(), began + len(body) / PACE)):
            part = await anext(parts, None)
        if part is None:
            return bytes(body)
        body += part
        if len(body) > limit:
            return None


async def let_go(request: Request, error: Exception) -> Response:
    """Answer a client that was too slow, or that has left and hears no answer."""
    status = 499 if isinstance(error, ClientDisconnect) else 408
    return Response(status_code=status, headers={"Connection": "close"})
