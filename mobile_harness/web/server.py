"""`pocketfocus serve`: listening on loopback or on the network, until Ctrl-C or a visit is over."""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import segno
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from pocketfocus.mobile_harness.options import Options
from pocketfocus.mobile_harness.web.api import Api, MakeJudge
from pocketfocus.mobile_harness.web.files import load_served, page_files
from pocketfocus.mobile_harness.web.guard import (
    TOKEN,
    OneTimeToken,
    SafeHeaders,
    SameOrigin,
    conflict,
    new_token,
)
from pocketfocus.mobile_harness.web.lan import lan_address, own_context, tls_context
from pocketfocus.mobile_harness.web.patience import Door, let_go, server_of
from pocketfocus.mobile_harness.web.visit import LAN, Visit, check_address
from pocketfocus.run.ending import SIGNALS, as_interrupted
from pocketfocus.run.errors import UserError
from pocketfocus.run.results import BenchRow, VerifyRow

LOOPBACK = "127.0.0.1"
PORT = 8765

Say = Callable[[str], None]


def make_app(
    api: Api, address: str, token: str | None = None, opened: Callable[[str], None] = lambda _: None
) -> Starlette:
    """Return the application; with a token only those come in who bring it."""
    middleware = [
        Middleware(SafeHeaders),
        Middleware(TrustedHostMiddleware, allowed_hosts=[address, "localhost"]),
        Middleware(SameOrigin),
    ]
    if token is not None:
        middleware.append(Middleware(OneTimeToken, token=token, opened=opened))
    handlers = {TimeoutError: let_go, ClientDisconnect: let_go, UserError: conflict}
    return Starlette(routes=api.routes(), middleware=middleware, exception_handlers=handlers)


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


def await_visit(
    folder: Path, address: str, options: Options, say: Say, make_judge: MakeJudge
) -> list[tuple[BenchRow, VerifyRow]]:
    """Serve `folder` until a browser has measured its ONNX files, and return what it sent.

    After Ctrl-C, or when none comes: what came until then (see `Visit.rows`), maybe nothing.
    """
    check_address(address)
    visit = Visit(frozenset(load_served(folder).artifacts), options.visit_s)
    say(f"open it in a phone's browser and measure all files; waiting {options.visit_s:g} s")
    serve(folder, Network(lan=address == LAN, port=0), say, make_judge, visit)
    return list(visit.rows.values())


def serve(
    folder: Path, network: Network, say: Say, make_judge: MakeJudge, visit: Visit | None = None
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
        context = encryption(network, address)

        def invite(token: str) -> None:
            say("one device came in; for one more:")
            say(invitation(f"{base}?{TOKEN}={token}{place}"))

        api = Api(served, page, make_judge, visit.take if visit else lambda bench, verify: None)
        server = server_of(make_app(api, address, token, invite), listener, context)
        if visit:
            stack.enter_context(visit.ends(server))
        with suppress(KeyboardInterrupt), as_interrupted(*SIGNALS):
            say(invitation(f"{base}?{TOKEN}={token}{place}" if token else base + place))
            say(hint(network, port))
            say("Ctrl-C stops.")
            server.run(sockets=[listener])
        say("stopped")


def encryption(network: Network, address: str) -> ssl.SSLContext | None:
    """Return how answers are encrypted; None on loopback."""
    if not network.lan:
        return None
    return tls_context(*network.certificate) if network.certificate else own_context(address)


def hint(network: Network, port: int) -> str:
    """Return what a phone's owner has to know of the address."""
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


def listen(address: str, port: int) -> Door:
    """Return a listening socket; UserError when the port cannot be had."""
    try:
        return Door(socket.create_server((address, port), backlog=256))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen on {address}:{port} ({reason}): choose another --port, or 0 for any"
        ) from error


def invitation(url: str) -> str:
    """Return the address and its QR code for a terminal."""
    picture = io.StringIO()
    segno.make(url, micro=False).terminal(picture, compact=True)
    return f"{picture.getvalue()}{url}"
