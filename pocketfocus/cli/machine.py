"""`doctor` and `serve`: what this machine can do, and a run in a phone's browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketfocus.cli import arguments
from pocketfocus.run.errors import UserError
from pocketfocus.run.progress import say

if TYPE_CHECKING:
    from pocketfocus.mobile_harness.web.files import Served
    from pocketfocus.mobile_harness.web.measurement import Judge

commands = typer.Typer()


@commands.command(epilog="Example: pocketfocus doctor")
def doctor(
    as_json: arguments.Json = False,
    install: Annotated[
        str | None,
        typer.Option("--install", metavar="NAME", help="set up a device here first: arm64"),
    ] = None,
) -> None:
    """Say what this machine can convert and execute, and what is missing for the rest."""
    if install is not None:
        from pocketfocus.mobile_harness.devices import install as set_up

        set_up(install, say)

    from rich.console import Console

    from pocketfocus.export.targets import TARGETS, get_target
    from pocketfocus.mobile_harness import doctor
    from pocketfocus.run.progress import step

    with step("looking at this machine"):
        findings = doctor.examine([get_target(name) for name in TARGETS])
    if as_json:
        arguments.print_json(rows=[vars(finding) for finding in findings])
    else:
        Console(highlight=False, markup=False).print(*doctor.tables(findings), sep="\n")


@commands.command(epilog="Example: pocketfocus serve build/demo --lan")
def serve(
    run: arguments.Run,
    lan: Annotated[
        bool, typer.Option("--lan", help="for phones on this network: HTTPS, one-time address")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any")] = 8765,
    cert: Annotated[
        Path | None,
        typer.Option("--cert", metavar="PEM", help="with --lan: a certificate that phones trust"),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="PEM", help="with --cert: its private key")
    ] = None,
) -> None:
    """Serve a page that refocuses and measures in a phone's browser, until Ctrl-C."""
    folder = arguments.earlier_results(arguments.run_folder(run))
    if (cert is None) != (key is None) or (cert is not None and not lan):
        raise UserError("--cert and --key go together, and with --lan: give all three or none")

    from pocketfocus.mobile_harness.web.server import Network
    from pocketfocus.mobile_harness.web.server import serve as serve_run

    certificate = (cert, key) if cert and key else None
    serve_run(folder, Network(lan, port, certificate), typer.echo, judge_of)


def judge_of(served: Served) -> Judge:
    """What judges a browser's measurements; its import takes seconds."""
    from pocketfocus.benchmarks.browser import BrowserJudge

    return BrowserJudge(served)
