"""What stands between the network and the routes: headers, who may come in, how much they may send.

Cross-origin isolation (COOP, COEP) is what a browser asks for before it gives WebAssembly threads.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "__Host-pocketfocus"
TOKEN = "token"
CSP = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "style-src 'self'; img-src 'self' blob:; connect-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class SafeHeaders:
    """Adds `HEADERS` to every answer, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self.app(scope, receive, with_headers)


class SameOrigin:
    """Refuses (403) what another site's page sends: every method but GET and HEAD needs an
    `Origin` equal to the host that was asked."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            headers = Headers(scope=scope)
            origin = urlsplit(headers.get("origin", ""))
            if (origin.scheme, origin.netloc) != (scope["scheme"], headers.get("host", "")):
                await refusal(403, "sent from another site")(scope, receive, send)
                return
        await self.app(scope, receive, send)


class OneTimeToken:
    """Lets in whoever holds the token of the moment, once, and then knows them by a cookie.

    `opened` is called with the next token when one was used; every used token is void (403).
    """

    def __init__(self, app: ASGIApp, token: str, opened: Callable[[str], None]) -> None:
        self.app = app
        self.token = token
        self.opened = opened
        self.sessions: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        given = request.query_params.get(TOKEN)
        response: Response
        if self.known(request.cookies.get(COOKIE, "")):
            if given is None:
                await self.app(scope, receive, send)
                return
            response = RedirectResponse("/", 303)
        elif given is not None and request.method == "GET" and same(given, self.token):
            session, self.token = new_token(), new_token()
            self.sessions.add(session)
            response = RedirectResponse("/", 303)
            response.set_cookie(COOKIE, session, secure=True, httponly=True, samesite="lax")
            self.opened(self.token)
        else:
            response = refusal(
                403, "open the address that `pocketfocus serve` prints; each is good once"
            )
        await response(scope, receive, send)

    def known(self, cookie: str) -> bool:
        """Return whether the cookie is one that was given out."""
        return any(same(cookie, session) for session in self.sessions)


def new_token() -> str:
    """Return 192 random bits, URL-safe."""
    return secrets.token_urlsafe(24)


def same(a: str, b: str) -> bool:
    """Compare in constant time."""
    return secrets.compare_digest(a.encode(), b.encode())


async def conflict(request: Request, error: Exception) -> JSONResponse:
    """Answer a request that goes with another run or file than this."""
    return refusal(409, str(error))


def refusal(status: int, why: str) -> JSONResponse:
    """Return an answer that says in one line why not."""
    return JSONResponse({"error": why}, status)
