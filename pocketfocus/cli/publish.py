"""`publish`: a run as a folder for the Hub, on the Hub, or as a page that any file host serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pocketfocus.cli import arguments
from pocketfocus.run.errors import UserError
from pocketfocus.run.progress import say

commands = typer.Typer()

FOLDER = "published"  # below the run's, unless another is named


@commands.command(
    epilog="Example: pocketfocus publish build/mine --licence apache-2.0 --to OWNER/NAME"
)
def publish(
    run: arguments.Run,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="the folder to write; else DIR/published"),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="OWNER/NAME", help="upload it to the Hugging Face Hub"),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="with --to: make a new repository private")
    ] = False,
    site: Annotated[
        Path | None,
        typer.Option("--site", metavar="DIR", help="write the phone's page as a static site there"),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--licence", metavar="ID", help="that you publish under, such as apache-2.0"),
    ] = None,
    unproven: Annotated[
        bool,
        typer.Option("--unproven", help="publish what changed, failed or was never measured"),
    ] = False,
) -> None:
    """Make a folder for the Hub of a run that is proven, with a model card of what was measured.

    With --site alone, write the phone's page and its files instead, for any host of files.
    """
    folder = arguments.run_folder(run)
    if private and to is None:
        raise UserError("--private is of --to: give both or neither")
    if site is not None and out is None and to is None:
        arguments.unused("of --site alone", {"--licence": licence})
    target = out or folder / FOLDER
    for place in (target, site):
        if place is not None:
            apart(folder, arguments.output_folder(place))

    from pocketfocus.benchmarks.model_card import Publication, check_licence
    from pocketfocus.benchmarks.publish import prove
    from pocketfocus.benchmarks.publish import publish as write_folder

    check_licence(licence)
    if to is not None:
        from pocketfocus.benchmarks.hub import check_destination

        check_destination(to)
    measured, doubts = prove(folder, unproven)
    for doubt in doubts:
        say(f"not proven: {doubt}")
    if site is None or out is not None or to is not None:
        from pocketfocus.mobile_harness.devices import fallbacks, get_device

        about = Publication(to or folder.resolve().name, licence, doubts)
        devices = (get_device("host"), *fallbacks("host"))
        typer.echo(f"folder: {write_folder(measured, target, about, devices)}")
    if to is not None:
        from pocketfocus.benchmarks.hub import upload

        typer.echo(f"uploaded: {upload(target, to, private)}")
    if site is not None:
        from pocketfocus.mobile_harness.web.site import write_site

        typer.echo(f"site: {write_site(folder, site)}")


def apart(folder: Path, place: Path) -> None:
    """Check that what is written replaces nothing of the run."""
    if folder.resolve().is_relative_to(place.resolve()):
        raise UserError(f"{place} holds the run itself: name another folder")
