"""`sensitivity` and `mixed`: what each layer costs, and a recipe made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketfocus.cli import arguments
from pocketfocus.run.errors import UserError

if TYPE_CHECKING:
    from pocketfocus.quantize.sensitivity import Sensitivity

commands = typer.Typer()


@commands.command(epilog="Example: pocketfocus sensitivity build/mine")
def sensitivity(run: arguments.Run, photos: arguments.Photos = None) -> None:
    """Quantize every layer of a run's student alone and measure its stack: sensitivity.json."""
    rows = measured(run, photos)
    for row in sorted(rows, key=lambda row: row.psnr_db)[:10]:
        typer.echo(f"{row.psnr_db:6.1f} dB  {row.layer}  {row.scheme.bits} bits")


@commands.command(
    epilog="Example: pocketfocus mixed build/mine --min-db 38 --recipe build/lean.yaml, then "
    "pocketfocus export --precisions build/lean.yaml --out build/mine"
)
def mixed(
    run: arguments.Run,
    recipe: Annotated[
        Path, typer.Option("--recipe", metavar="FILE.yaml", help="the recipe to write")
    ],
    min_db: Annotated[
        float | None, typer.Option("--min-db", min=0, help="the smallest file of so many dB")
    ] = None,
    max_mb: Annotated[
        float | None, typer.Option("--max-mb", min=0, help="the best file of so many MB")
    ] = None,
    targets: arguments.Targets = arguments.ALL,
    photos: arguments.Photos = None,
) -> None:
    """Find a recipe: the smallest file above a PSNR, or the best one under a size."""
    from pocketfocus.export.targets import get_targets
    from pocketfocus.quantize.recipes import NAME, RECIPES, is_recipe_file, to_yaml

    if min_db is None and max_mb is None:
        raise UserError("say what is wanted: --min-db, --max-mb, or both")
    if not is_recipe_file(recipe.name) or not NAME.fullmatch(recipe.stem):
        raise UserError(f"{recipe} is no name for a recipe: name a file such as lean.yaml")
    if recipe.stem in RECIPES:
        raise UserError(f"the name '{recipe.stem}' is a shipped recipe's: choose another file name")
    chosen_targets = arguments.target_names(targets)
    arguments.output_file(recipe)
    rows = measured(run, photos)

    from pocketfocus.models.student import load_student
    from pocketfocus.quantize import mixed as search
    from pocketfocus.run.files import write_atomic

    student = load_student(run / "student")
    paths = {target: search.path(target, student, rows) for target in chosen_targets}
    chosen = {
        target: search.choose_point(points, target, min_db, max_mb)
        for target, points in paths.items()
    }
    with write_atomic(recipe) as scratch:
        scratch.write_text(to_yaml(search.recipe_of(recipe.stem, chosen)), encoding="utf-8")
    colours = {target.name: target.colour for target in get_targets()}
    search.plot(paths, chosen, search.measured_points(run), colours, run / search.PARETO_FILE)
    for target, point in chosen.items():
        typer.echo(
            f"{target}: estimated {point.bytes / 1e6:.2f} MB of weights at {point.psnr_db:.1f} dB"
        )
    typer.echo(f"recipe: {recipe}; plot: {run / search.PARETO_FILE}")


def measured(run: Path, photos: Path | None) -> list[Sensitivity]:
    """Return the rows of a run's sensitivity, and its plot."""
    folder = arguments.writable(arguments.run_folder(run))
    arguments.student_folder(folder / "student")
    files = arguments.photo_files(photos)

    from pocketfocus.quantize.sensitivity import PLOT_FILE, measure, plot

    rows = measure(folder, files)
    plot(rows, folder / PLOT_FILE)
    return rows
