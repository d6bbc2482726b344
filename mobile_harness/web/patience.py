"""How long the server waits for its clients: one that sends nothing, or slowly, is let go."""

from __future__ import annotations

import asyncio
import resource
import ssl

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_S = 10.0  # until a request's headers are there
STALL_S = 10.0  # between two parts of its body
BODY_S = 120.0  # for all of it
KEPT_FILES = 128  # of those that the process may open, for everything but connections
MOST_CONNECTIONS = 4096


class Impatient(H11Protocol):
    """A connection that is closed when no request comes of it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self.loop.call_later(HEADER_S, self._give_up)

    def _give_up(self) -> None:
        request: object = self.cycle  # None until one has come
        if request is None and not self.transport.is_closing():
            self.transport.abort()


def server_of(app: ASGIApp, context: ssl.SSLContext | None = None) -> uvicorn.Server:
    """Return a server of the application, over TLS where there is a context."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = uvicorn.Config(
        app,
        http=Impatient,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        limit_concurrency=min(MOST_CONNECTIONS, max(64, files - KEPT_FILES)),
        ssl_context_factory=(lambda config, usual: context) if context else None,
    )
    return uvicorn.Server(config)


async def body_of(request: Request, limit: int) -> bytes | None:
    """Return the request's body, or None when it has more than `limit` bytes; no more is kept.

    TimeoutError for a client that stalls, ClientDisconnect for one that leaves.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > limit:
        return None
    body, parts = bytearray(), request.stream()
    async with asyncio.timeout(BODY_S):
        while True:
            async with asyncio.timeout(STALL_S):
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
