"""`refocus` and `evaluate`: a model at work on one photo, and its score on true focal stacks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketfocus.cli import arguments
from pocketfocus.run.constants import FRAMES, FRAMES_SIDE, MULTIPLE
from pocketfocus.run.errors import UserError
from pocketfocus.run.progress import say, step

if TYPE_CHECKING:
    from pocketfocus.models.model import Model
    from pocketfocus.photos.pixels import Photo

commands = typer.Typer()
SMALLEST_COMPARED = 16  # pixels; SSIM averages over 11

MODEL = (
    "`reference`, `reference:DIR`, either with @STEPS/GUIDANCE, `student`, `student-open`, a "
    "student folder, a .pte, an .onnx or an .mlpackage; these with @self-ensemble after it"
)
SCORED = f"{MODEL}, `autoencoder`; `copy` and `blur` are always there"


@commands.command(
    epilog="Example: pocketfocus refocus photo.heic --focus-at 0.4,0.6 --out there.jpg"
)
def refocus(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="an image file of any size")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE|DIR",
            help="a .jpg, .png or .tif for one picture, or a folder for the results",
        ),
    ],
    focus: Annotated[
        float | None,
        typer.Option(
            "--focus", metavar="F", help="one picture, focused at 0 (5 cm) … 8 (infinity)"
        ),
    ] = None,
    focus_at: Annotated[
        str | None,
        typer.Option(
            "--focus-at",
            metavar="X,Y",
            help="one picture, sharp at a point: in pixels, or fractions below 1 of the sides",
        ),
    ] = None,
    aperture: Annotated[
        float | None,
        typer.Option(
            "--aperture",
            metavar="A",
            help="one picture: 0 is sharp everywhere, 1 as the phone, at most 2",
        ),
    ] = None,
    position: Annotated[
        str,
        typer.Option(
            "--position",
            metavar="auto|P",
            help="where the photo is in focus: 0 (5 cm) … 8 (infinity); auto finds out",
        ),
    ] = arguments.AUTO,
    max_side: Annotated[
        int | None,
        typer.Option(
            "--max-side",
            metavar="N",
            min=arguments.SMALLEST_SIDE,
            help="scale the photo down to N pixels at most; nine frames to 1280",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help=f"{MODEL}; else the shipped one")
    ] = None,
) -> None:
    """Refocus a photo: one picture of any focus and aperture at the photo's own size, or, with
    neither, nine PNGs, GIF, MP4, all-in-focus, focus map, and a page."""
    at = None if position == arguments.AUTO else arguments.position(position)
    point = None if focus_at is None else arguments.point(focus_at)
    if focus is not None and point is not None:
        raise UserError("--focus and --focus-at name two focal positions: give one of them")
    arguments.model(model)

    if focus is None and point is None and aperture is None:
        arguments.frames_folder(out)
        page = _nine_frames(photo, out, at, max_side, model)
        typer.echo(f"open {page} in a browser and tap on the photo")
        return
    target = arguments.picture_file(out, photo)
    wanted = _Wanted(focus, point, 1.0 if aperture is None else aperture)
    typer.echo(_one_picture(photo, target, at, max_side, model, wanted))


@dataclass(frozen=True)
class _Wanted:
    """One picture: its focus, or the point that is to be sharp, or neither for the photo's own."""

    focus: float | None
    point: tuple[float, float] | None
    aperture: float


def _one_picture(
    path: Path, out: Path, at: int | None, most: int | None, model: str | None, wanted: _Wanted
) -> Path:
    """Write one picture of a photo, and return where."""
    from pocketfocus.data.optics import distance
    from pocketfocus.models.render import aperture_of, focus_weights
    from pocketfocus.photos.pixels import open_photo
    from pocketfocus.photos.refocusing import focus_at, refocused, tell_focus
    from pocketfocus.photos.saving import is_deep, save_picture

    aperture_of(wanted.aperture)
    if wanted.focus is not None:
        focus_weights(wanted.focus)
    photo = open_photo(path, deep=is_deep(out))
    point = None if wanted.point is None else arguments.fractions(wanted.point, photo.size)
    photo = photo.limited(most)
    opened, position = _opened(model, photo, at)
    with step(f"refocusing with {opened.name}"):
        made = refocused(opened, photo.pixels, position)
        focus = float(position) if wanted.focus is None else wanted.focus
        if point is not None:
            focus = focus_at(made.focus_map(), *point)
        picture = replace(photo, pixels=made.picture(focus, wanted.aperture))
        del made, photo  # the pixels of the photo itself: writing takes memory for a picture more
        tell_focus(picture.exif, focus)
        fields = {"focus": focus, "aperture": wanted.aperture, "position": position}
        save_picture(picture, out, fields | {"model": opened.name})
    say(f"focused at {focus:g} ({distance(focus)}), aperture {wanted.aperture:g}")
    return out


def _nine_frames(
    path: Path, out: Path, at: int | None, most: int | None, model: str | None
) -> Path:
    """Write the nine frames of a photo and all that goes with them; return the page.

    A model that says what size of the whole photo fits it gets that, unless `most` is given.
    """
    from pocketfocus.photos.gallery import check_not_replaced, save_refocus
    from pocketfocus.photos.pixels import open_photo
    from pocketfocus.photos.refocusing import refocused

    check_not_replaced(path, out)
    whole = open_photo(path)
    photo = whole.limited(most or FRAMES_SIDE).in_srgb()
    opened, position = _opened(model, photo, at)
    given = photo if most or opened.fit is None else whole.in_srgb()
    with step(f"refocusing with {opened.name}"):
        made = refocused(opened, given.pixels, position, whole=False)
        return save_refocus(made, photo.pixels, position, out, opened.name)[-1]


def _opened(model: str | None, photo: Photo, at: int | None) -> tuple[Model, int]:
    """Open a model, and find the photo's focal position where it is not given; of one that tells no
    position, the shipped student does."""
    from pocketfocus.export.open import open_model
    from pocketfocus.models.student import SHIPPED_WEIGHTS
    from pocketfocus.photos.refocusing import find_position

    shipped = str(SHIPPED_WEIGHTS)
    opened = open_model(model or shipped)
    if at is None:
        analyser = opened.analyser or open_model(shipped).analyser
        assert analyser is not None
        at = find_position(analyser, photo.pixels, photo.exif, photo.name)
    return opened, at


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
    compare_at: Annotated[
        str | None,
        typer.Option(
            "--compare-at",
            metavar="WxH",
            help="scale what models made, and the truth, to this size before they are compared",
        ),
    ] = None,
    metric_weights: Annotated[
        Path | None,
        typer.Option(
            "--metric-weights",
            metavar="DIR",
            help="a folder with networks' weights, for LPIPS, DISTS and FID (docs/scores.md)",
        ),
    ] = None,
    register: Annotated[
        bool,
        typer.Option(
            "--register",
            help="first undo how a folder's frames move against each other as the lens focuses",
        ),
    ] = False,
) -> None:
    """Score models against true focal stacks, beside copying and blurring the photo."""
    named = inputs if positions is None else positions
    places = tuple(range(FRAMES)) if named is None else arguments.positions(named)
    height_width = None if size is None else arguments.size(size, MULTIPLE)
    compared = None
    if compare_at is not None:
        compared = arguments.size(compare_at, SMALLEST_COMPARED, "--compare-at")
    for spec in models:
        arguments.model(spec)
    if out is not None:
        arguments.output_file(out)

    from pocketfocus.benchmarks.evaluate import Comparison, Scoring, evaluate_scoring
    from pocketfocus.benchmarks.tables import print_table

    how = Comparison(places, inputs_per_scene, compared)
    scoring = Scoring(models, stacks, scenes, height_width, how, metric_weights, register)
    print_table(evaluate_scoring(scoring, out, say).means)
