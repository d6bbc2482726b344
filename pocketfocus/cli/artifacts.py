"""`export`, `verify`, `bench`, `report`: the stages after distillation, by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketfocus.cli import arguments
from pocketfocus.run.constants import RUNS, Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.progress import say
from pocketfocus.run.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from pocketfocus.export.stage import Export
    from pocketfocus.mobile_harness.options import Options
    from pocketfocus.run.results import GateRow, VerifyRow

commands = typer.Typer()

ROW_COLUMNS = ("artifact", "gate", "psnr_db", "threshold_db", "status", "why")
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="where the files run, one of `pocketfocus devices`"
    ),
]
Runner = Annotated[
    Path | None,
    typer.Option("--runner", metavar="PATH", help="Android: ExecuTorch's executor_runner"),
]
CoolBelow = Annotated[
    float,
    typer.Option("--cool-below", metavar="CELSIUS", help="Android: begin below this temperature"),
]
Wait = Annotated[
    float, typer.Option("--wait", min=1, metavar="SECONDS", help="browser: for its next row")
]
Team = Annotated[
    str | None,
    typer.Option("--team", metavar="ID", help="iPhone: development team that signs the app"),
]


Golden = Annotated[
    Path | None,
    typer.Option(
        "--golden",
        metavar="DIR",
        help="write a bundle of files, inputs, expected outputs and tolerances there",
    ),
]
Replay = Annotated[
    Path | None,
    typer.Option("--replay", metavar="DIR", help="execute a golden bundle here instead"),
]
Locate = Annotated[
    str | None,
    typer.Option(
        "--locate",
        metavar="ARTIFACT",
        help="name the first layer of a file whose output leaves its tolerance",
    ),
]


@commands.command(epilog="Example: pocketfocus export --precisions int8 --out build/mine")
def export(
    out: arguments.Out,
    student: arguments.Student = None,
    photos: arguments.Photos = None,
    targets: arguments.Targets = arguments.ALL,
    precisions: arguments.Precisions = arguments.ALL,
    ios: arguments.Ios = None,
    four_bit: arguments.FourBit = None,
    sizes: arguments.Sizes = None,
    full: Annotated[
        bool, typer.Option("--full", help="the networks of --reference itself, no student")
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="NAME|DIR|HUB_ID",
            help="with --full: the reference, as in `distill`; else the shipped one",
        ),
    ] = None,
    size: Annotated[
        str | None, arguments.size_option("with --full: of the photo, else 64x64")
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option("--parts", metavar="A,B", help="with --full: some of encoder, decoder, unet"),
    ] = None,
) -> None:
    """Quantize a student and write files of every target and precision, with a manifest.

    With --full, write the networks of a reference instead: UNet, decoder and encoder.
    """
    arguments.output_folder(out)
    given = {"ios": ios, "form": four_bit}
    options = {name: value for name, value in given.items() if value is not None}
    if full:
        if any(value is not None for value in (student, photos, sizes)):
            raise UserError("--full exports a reference: leave --student, --photos and --sizes out")
        spec = arguments.reference(reference or "default")
        photo = arguments.size(size or "64x64")

        from pocketfocus.export.stage import FULL_PRECISIONS, Export, full_targets

        everything = precisions == arguments.ALL
        recipes = FULL_PRECISIONS if everything else arguments.recipe_names(precisions)
        able = arguments.names(targets, full_targets(), "target")
        request = Export(out, able, recipes, options)
        export_networks(spec, request, parts or arguments.ALL, photo)
        return
    of_reference = {
        "--reference": (reference, "--student for the student to write"),
        "--size": (size, "--sizes for photos of other sizes"),
        "--parts": (parts, "leave it out: a student is written whole"),
    }
    for option, (value, instead) in of_reference.items():
        if value is not None:
            raise UserError(
                f"{option} {value} is for the networks of a reference: write --full too, or "
                f"{instead}"
            )
    start = arguments.student_folder(student)
    recipes = arguments.recipe_names(precisions)
    chosen = arguments.target_names(targets)
    others = arguments.sizes(sizes)
    files = arguments.photo_files(photos)

    from pocketfocus.export.stage import Export, export_run

    request = Export(out, chosen, recipes, options, sizes=others)
    manifest = export_run(start, request, files, say)
    for artifact in manifest.files:
        typer.echo(f"{artifact.status:8} {artifact.name}")


def export_networks(reference: str, request: Export, parts: str, size: Size) -> None:
    """Write a reference's networks, then execute and gate them."""
    from pocketfocus.benchmarks.verify import Verification, verify_run
    from pocketfocus.export.reference import PARTS
    from pocketfocus.export.stage import export_full
    from pocketfocus.mobile_harness.devices import fallbacks, get_device

    chosen = arguments.names(parts, sorted(PARTS), "part")
    export_full(reference, request, chosen, size, say)
    rows = verify_run(request.out, get_device("host"), Verification(fallbacks=fallbacks("host")))
    print_rows(rows, ROW_COLUMNS)
    arguments.exit_by_gates(rows)


@commands.command(
    epilog="Example: pocketfocus verify build/mine\n\n"
    "Another machine: pocketfocus verify build/mine --golden build/golden, then there: "
    "pocketfocus verify --replay build/golden"
)
def verify(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="the folder of a run, made by `build` or `export`"),
    ] = None,
    photos: arguments.Photos = None,
    all_photos: Annotated[
        bool,
        typer.Option("--all-photos", help="all of --photos; else 8 of them, evenly spread"),
    ] = False,
    device: Device = "host",
    runner: Runner = None,
    team: Team = None,
    wait: Wait = 1800.0,
    golden: Golden = None,
    replay: Replay = None,
    locate: Locate = None,
    positions: Annotated[
        str | None, arguments.positions_option("only from these positions: for a slow device")
    ] = None,
    repeat: Annotated[
        int | None,
        typer.Option(
            "--repeat", min=2, metavar="N", help="call each file N times more: the same values?"
        ),
    ] = None,
) -> None:
    """Execute every file of a run on real photos and gate it against its parent."""
    if sum(value is not None for value in (golden, replay, locate)) > 1:
        raise UserError("--golden, --replay and --locate are three tasks: give one of them")
    if golden or replay or locate:
        given = {"--positions": positions, "--repeat": repeat}
        arguments.unused("beside --golden, --replay or --locate", given)
    if replay is not None:
        arguments.unused("with --replay, which has inputs of its own", {"--photos": photos})
    if locate is not None:
        arguments.unused("with --locate, which works here", {"--device": device != "host"})
    if photos is None:
        arguments.unused("without --photos", {"--all-photos": all_photos})
    places = None if positions is None else arguments.positions(positions)
    if (run is None) == (replay is None):
        raise UserError("name the folder of a run, or a golden bundle with --replay, not both")
    results = ("verify.json",) if repeat is None else ("verify.json", "repeat.json")
    folder = arguments.results_folder(run, *results) if run else None
    files = arguments.sample(arguments.photo_files(photos), all_photos)
    if golden is not None:
        arguments.output_folder(golden)

    from pocketfocus.mobile_harness.devices import fallbacks, get_device, get_devices, kind_of
    from pocketfocus.mobile_harness.options import Options

    options = Options(runner=runner, team=team, visit_s=wait)
    others, kind = fallbacks(device), kind_of(device)
    if folder is None:
        from pocketfocus.benchmarks.golden import replay as replay_bundle

        there = get_devices(device, options)
        rows: Sequence[GateRow] = replay_bundle(replay or Path(), there, others)
    elif golden is not None:
        from pocketfocus.benchmarks.golden import write_golden

        able = (get_device(device, options), *others)
        typer.echo(f"golden bundle: {write_golden(folder, golden, able, files)}")
        return
    elif locate is not None:
        from pocketfocus.benchmarks.locate import locate_fault

        found = locate_fault(folder, locate, files)
        print_rows(found.rows, ("layer", "operator", "psnr_db", "tolerance_db", "status"))
        typer.echo(found.summary)
        return
    else:
        if kind.visits_itself:
            arguments.unused(of_page(device), {"--photos": photos, "--positions": positions})
        rows = verified(folder, device, options, files, places, repeat)
    print_rows(rows, ROW_COLUMNS)
    if folder is not None:
        from pocketfocus.benchmarks.lint import lint_of_student

        seen = lint_of_student(folder)
        say(f"lint: {seen}: see pocketfocus lint {folder}" if seen else "lint: nothing found")
    arguments.exit_by_gates(rows, each_device=not kind.falls_back)


def of_page(device: str) -> str:
    """Say of a device that comes by itself why an option changes nothing there."""
    return f"with --device {device}, whose page has photo, positions and calls of its own"


def verified(
    folder: Path,
    device: str,
    options: Options,
    files: Sequence[Path] | None,
    places: Sequence[int] | None,
    repeat: int | None,
) -> list[VerifyRow]:
    """The rows of verify.json, and of repeat.json where calls are repeated, of a run on the devices
    of that name."""
    from pocketfocus.benchmarks.browser import visited
    from pocketfocus.benchmarks.repeat import check_students, repeat_run
    from pocketfocus.benchmarks.verify import Verification, verify_run
    from pocketfocus.mobile_harness.devices import fallbacks, get_devices, on_each, reference_device

    how = Verification(files, places, fallbacks(device), reference_device(device))
    if repeat is not None:
        check_students(folder)
    sent = visited(device, folder, options, say, repeat or 0).verify
    if sent:
        return sent
    there = get_devices(device, options)
    rows = on_each(there, lambda one: verify_run(folder, one, how))
    if repeat is not None:
        rows += on_each(there, lambda one: repeat_run(folder, one, repeat))
    return rows


@commands.command(epilog="Example: pocketfocus bench build/mine --threads 2")
def bench(
    run: arguments.Run,
    photos: arguments.Photos = None,
    reference: arguments.Reference = "default",
    runs: arguments.Runs = RUNS,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; else the device's default")
    ] = None,
    device: Device = "host",
    runner: Runner = None,
    cool_below: CoolBelow = 35.0,
    team: Team = None,
    wait: Wait = 1800.0,
) -> None:
    """Measure load time, latency and memory of every file, the student and the reference."""
    folder = arguments.results_folder(run, "bench.json")
    spec = arguments.reference(reference)
    files = arguments.photo_files(photos)

    from pocketfocus.benchmarks.browser import visited
    from pocketfocus.benchmarks.latency import Bench, bench_run, unmeasured
    from pocketfocus.mobile_harness.devices import kind_of, on_each, timed_devices
    from pocketfocus.mobile_harness.options import Options
    from pocketfocus.run.results import MEASURED

    if kind_of(device).visits_itself:
        own = {
            "--photos": photos,
            "--reference": reference != "default",
            "--runs": runs != RUNS,
            "--threads": threads,
        }
        arguments.unused(of_page(device), own)
    options = Options(runner=runner, cool_c=cool_below, team=team, visit_s=wait)
    how = Bench(spec, runs, threads=threads, photos=files)
    sent = visited(device, folder, options, say).bench
    rows = sent or on_each(timed_devices(device, options), lambda one: bench_run(folder, one, how))
    columns = ("artifact", *MEASURED, "bytes")
    print_rows(rows, columns if device == "host" else ("device", *columns, "status", "why"))
    arguments.complain("not measured", unmeasured(rows))


@commands.command(epilog="Example: pocketfocus devices")
def devices(runner: Runner = None) -> None:
    """List every kind of device: what is reachable now, and why the others are not."""
    from pocketfocus.mobile_harness.devices import list_devices
    from pocketfocus.mobile_harness.options import Options

    rows = list_devices(Options(runner=runner))
    print_rows(rows, ("device", "reachable", "model", "chip", "os", "runtime", "why"))


@commands.command(epilog="Example: pocketfocus report build/mine")
def report(run: arguments.Run) -> None:
    """Write DIR/report.html, one self-contained page, from what the other stages wrote."""
    folder = arguments.writable(arguments.run_folder(run))

    from pocketfocus.benchmarks.report import write_report

    typer.echo(f"report: {write_report(folder)}")


def print_rows(rows: Sequence[object], columns: Sequence[str]) -> None:
    """Print these columns of a stage's rows as a table on standard output."""
    from rich.table import Table

    table = Table(box=None)
    for column in columns:
        figures = all(isinstance(getattr(row, column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        cells = (getattr(row, column) for column in columns)
        table.add_row(
            *(f"{c:.1f}" if isinstance(c, float) else printable(str(c or "–")) for c in cells)
        )
    print_table(table, 160)


def print_table(table: Table, width: int) -> None:
    """Print a table on standard output, of this width where that is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = width
    console.print(table)
