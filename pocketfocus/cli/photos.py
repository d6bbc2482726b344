"""`refocus` and `evaluate`: a model at work on one photo, and its score on true focal stacks."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketfocus.cli import arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pocketfocus.data.stacks import FocalStack

commands = typer.Typer()

MODEL = (
    "`reference`, `reference:DIR`, either with @STEPS/GUIDANCE, `student`, a student folder, a "
    ".pte, an .onnx or an .mlpackage"
)
SCORED = f"{MODEL}, `autoencoder`; `copy` and `blur` are always there"
SYNTHETIC, SCENES = "synthetic", 64


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
    epilog="Example: pocketfocus evaluate build/mine/student reference --scenes 4 --inputs 0,4,8"
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
    ] = SYNTHETIC,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="write the rows there, as JSON; interrupted, the same command goes on",
        ),
    ] = None,
    scenes: Annotated[
        int, typer.Option("--scenes", min=1, help="how many scenes at most")
    ] = SCENES,
    inputs: Annotated[
        str, typer.Option("--inputs", metavar="P,P", help="only from these input positions")
    ] = "0,1,2,3,4,5,6,7,8",
    inputs_per_scene: Annotated[
        int | None,
        typer.Option(
            "--inputs-per-scene",
            metavar="K",
            min=1,
            help="from K of the input positions a scene, in turn: all of them at less cost",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=64, help="scale a folder's images to this square")
    ] = None,
) -> None:
    """Score models against true focal stacks, beside copying and blurring the photo."""
    positions = arguments.positions(inputs)
    for spec in models:
        arguments.model(spec)
    if out is not None:
        arguments.output_file(out)

    from pocketfocus.benchmarks.baselines import baselines
    from pocketfocus.benchmarks.evaluate import evaluate_models, print_table
    from pocketfocus.benchmarks.scores import Ledger
    from pocketfocus.data.datasets import check_source
    from pocketfocus.export.open import open_any
    from pocketfocus.run.files import write_rows

    check_source(stacks)
    always = baselines()
    specs = [spec for spec in models if spec not in {model.name for model in always}]
    opened = [replace(open_any(spec), name=spec) for spec in specs]
    truth, shown = true_stacks(stacks, scenes, size)
    name = Path(stacks).resolve().name if Path(stacks).is_dir() else stacks
    ledger = Ledger()
    if out is not None:
        how = {"scenes": scenes, "inputs": positions, "turns": inputs_per_scene, "size": size}
        key = _key(specs, shown, how)
        ledger = Ledger(out.with_name(f"{out.name}.scores"), key)
        if len(ledger):
            typer.echo(f"going on after {len(ledger)} calls kept in {out.name}.scores", err=True)
    rows = evaluate_models([*opened, *always], truth, name, positions, inputs_per_scene, ledger)
    if out is not None:
        write_rows(out, rows)
    ledger.remove()
    print_table(rows)


def _key(specs: list[str], stacks: str, how: dict[str, object]) -> str:
    """Hash of all that the scores depend on, weights and true stacks included."""
    from pocketfocus.cli.build import WEIGHTS
    from pocketfocus.run.files import key_of, sha256

    def content(spec: str) -> str:
        path = Path(spec) if Path(spec).exists() else Path(spec.partition("@")[0].partition(":")[2])
        return sha256(path) if path.parts and path.exists() else ""

    shipped = {name: sha256(WEIGHTS / name) for name in ("reference", "blur_baseline.json")}
    models = {spec: content(spec) for spec in specs}
    return key_of(models=models, shipped=shipped, stacks=stacks, **how)


def true_stacks(
    stacks: str, scenes: int | None, size: int | None
) -> tuple[Sequence[FocalStack], str]:
    """The test stacks of a source, at most `scenes` of them, and the hash they are known by.

    A folder's images keep their size unless one is given; the others are 256 by 256.
    """
    from pocketfocus.benchmarks.evaluate import validation_stacks
    from pocketfocus.data.datasets import TEST, Request, open_source

    request = Request(scenes or SCENES, (size, size) if size else None, TEST, crop=False)
    source = open_source(stacks, request)
    if stacks == SYNTHETIC:
        return validation_stacks(scenes or SCENES), source.key
    opened = (source.load(index) for index in range(len(source.names)))
    return list(islice((stack for stack in opened if stack is not None), scenes)), source.key
