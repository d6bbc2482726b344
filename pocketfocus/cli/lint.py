"""`lint`: what may go badly with written files on some device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketfocus.cli import arguments
from pocketfocus.run.progress import say
from pocketfocus.run.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pocketfocus.benchmarks.lint import Found

commands = typer.Typer()


@commands.command(
    epilog="Example: pocketfocus lint build/mine\n\n"
    "One file: pocketfocus lint build/mine/coreml/student-int4.mlpackage"
)
def lint(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="runs, or files of any target")
    ],
    measure: Annotated[
        bool, typer.Option(help="call the files of a run, to see how large values become")
    ] = True,
    as_json: arguments.Json = False,
) -> None:
    """Say what is known to go badly with such files on some device, with the report and a way out.

    Ends with 1 where a file has an error. A single file is read, never called.
    """
    from pocketfocus.benchmarks.lint import lint as findings
    from pocketfocus.benchmarks.lint import summary

    found = [each for path in paths for each in findings(path, measure)]
    if as_json:
        arguments.print_json(rows=[each.row() for each in found])
    else:
        print_findings(found)
        say(summary(each.advice for each in found) or "nothing found")
    if any(each.advice.severity == "error" for each in found):
        raise typer.Exit(1)


def print_findings(found: Sequence[Found]) -> None:
    """Print three lines a finding: what and where, the way out, the source."""
    for each in found:
        said = each.advice
        head = f"{said.severity}: {each.file}: {said.where}: {said.what} [{said.rule}]"
        typer.echo(printable(head))
        typer.echo(printable(f"    so: {said.remedy}"))
        typer.echo(f"    see {said.link}")
