"""`compare`: two runs side by side, and a regression gate by budgets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketfocus.cli import arguments
from pocketfocus.cli.artifacts import print_table
from pocketfocus.run.progress import say

if TYPE_CHECKING:
    from pocketfocus.benchmarks.compare import Comparison

commands = typer.Typer()


def run_argument(name: str, what: str) -> typer.models.ArgumentInfo:
    """Declare one of the two runs."""
    return typer.Argument(metavar=name, help=f"the folder of {what}")


@commands.command(
    epilog="Example: pocketfocus compare build/before build/after --max-slower 5% --max-loss 0.1dB"
)
def compare(
    run_a: Annotated[Path, run_argument("RUN_A", "the run to compare with")],
    run_b: Annotated[Path, run_argument("RUN_B", "the run that is judged")],
    max_slower: Annotated[
        str | None,
        typer.Option("--max-slower", metavar="N%", help="budget of every file's median latency"),
    ] = None,
    max_loss: Annotated[
        str | None,
        typer.Option("--max-loss", metavar="NdB", help="budget of PSNR against true stacks"),
    ] = None,
    max_bigger: Annotated[
        str | None, typer.Option("--max-bigger", metavar="N%", help="budget of every file's size")
    ] = None,
    as_json: arguments.Json = False,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="write a self-contained HTML page there"),
    ] = None,
) -> None:
    """Say what changed from one run to another, and whether that is beyond noise.

    Exit code 1, and a line for each, where a named budget is broken.
    """
    folders = [arguments.run_folder(run) for run in (run_a, run_b)]
    if page is not None:
        arguments.output_file(page)

    from pocketfocus.benchmarks.budgets import judge, read_budgets
    from pocketfocus.benchmarks.compare import compare as compare_runs
    from pocketfocus.benchmarks.measured import read_run

    budgets = read_budgets(max_slower, max_loss, max_bigger)
    comparison = compare_runs(*map(read_run, folders))
    judgement = judge(comparison, budgets)
    if page is not None:
        from pocketfocus.benchmarks.compare_page import write_page

        write_page(comparison, page, judgement if budgets else None)
    if as_json:
        a, b = (str(run.folder) for run in (comparison.a, comparison.b))
        said = {"notes": list(comparison.notes), **asdict(judgement)}
        arguments.print_json(a=a, b=b, rows=comparison.rows(), **said)
    else:
        print_changes(comparison)
    for line in judgement.undecided:
        say(f"noise alone can explain: {line}")
    for line in judgement.broken:
        say(f"budget broken: {line}")
    if judgement.broken:
        raise typer.Exit(1)


def print_changes(comparison: Comparison) -> None:
    """Print the changes as a table, and below it what could not be compared."""
    from rich.table import Table

    from pocketfocus.benchmarks.compare_page import cells

    table = Table(box=None)
    for head in ("file", "on", "figure"):
        table.add_column(head, overflow="fold")
    for head in ("A", "B", "change", "95 %"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for change in comparison.changes:
        why = f" ({change.why})" if change.why else ""
        table.add_row(*cells(change), f"{change.verdict}{why}")
    print_table(table, 200)
    for note in comparison.notes:
        say(note)
