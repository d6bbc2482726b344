"""`refocus` and `evaluate`: a model at work on one photo, and its score on true focal stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pocketfocus.cli import arguments
from pocketfocus.run.constants import FRAMES, MULTIPLE
from pocketfocus.run.progress import say

commands = typer.Typer()

MODEL = (
    "`reference`, `reference:DIR`, either with @STEPS/GUIDANCE, `student`, a student folder, a "
    ".pte, an .onnx or an .mlpackage"
)
SCORED = f"{MODEL}, `autoencoder`; `copy` and `blur` are always there"


@commands.command(
    epilog="Example: pocketfocus refocus photo.jpg --position 4 --out build/refocused"
)
def refocus(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="an image file of any size")],
    position: Annotated[
        str,
        typer.Option(
            "--position", metavar="P", help="where the photo is in focus: 0 (5 cm) … 8 (infinity)"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="the folder for the results")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help=f"{MODEL}; else the shipped one")
    ] = None,
) -> None:
    """Make a focal stack of a photo: nine PNGs, GIF, MP4, all-in-focus, focus map, and a page."""
    at = arguments.position(position)
    arguments.output_folder(out)
    arguments.model(model)

    from pocketfocus.export.open import open_model
    from pocketfocus.models.student import SHIPPED_WEIGHTS
    from pocketfocus.photos.gallery import run_model, save_refocus
    from pocketfocus.photos.images import load_photo
    from pocketfocus.run.progress import step

    picture = load_photo(photo)
    opened = open_model(model or str(SHIPPED_WEIGHTS))
    with step(f"refocusing with {opened.name}"):
        stack = run_model(opened, picture, at)
        files = save_refocus(stack, picture, at, out, opened.name)
    typer.echo(f"open {files[-1]} in a browser and tap on the photo")


@commands.command(
    epilog="Example: pocketfocus evaluate build/mine/student reference --scenes 4 --positions 0,4,8"
)
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=SCORED)],
    stacks: Annotated[
        str,
        typer.Option(
            "--stacks",
            metavar="SOURCE",
            help="`synthetic`, rendered scenes; DIR, a folder per scene with images sorted near to "
            "far; `rgbd:DIR`, photos with depth maps",
        ),
    ] = "synthetic",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="write the rows there, as JSON; interrupted, the same command goes on",
        ),
    ] = None,
    scenes: Annotated[int, typer.Option("--scenes", min=1, help="how many scenes at most")] = 64,
    positions: Annotated[
        str | None, arguments.positions_option("only from these input positions")
    ] = None,
    inputs: Annotated[str | None, typer.Option("--inputs", hidden=True)] = None,
    inputs_per_scene: Annotated[
        int | None,
        typer.Option(
            "--inputs-per-scene",
            metavar="K",
            min=1,
            help="from K of the positions a scene, in turn: all of them at less cost",
        ),
    ] = None,
    size: Annotated[
        str | None, arguments.size_option("scale the images to this size; else a folder's own")
    ] = None,
) -> None:
    """Score models against true focal stacks, beside copying and blurring the photo."""
    named = inputs if positions is None else positions
    places = tuple(range(FRAMES)) if named is None else arguments.positions(named)
    height_width = None if size is None else arguments.size(size, MULTIPLE)
    for spec in models:
        arguments.model(spec)
    if out is not None:
        arguments.output_file(out)

    from pocketfocus.benchmarks.evaluate import Scoring, evaluate_scoring
    from pocketfocus.benchmarks.tables import print_table

    scoring = Scoring(models, stacks, scenes, places, inputs_per_scene, height_width)
    print_table(evaluate_scoring(scoring, out, say).means)
