"""What the commands take: option types, and checks that run before anything heavy starts."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketfocus.cli import quiet
from pocketfocus.models.places import STUDENTS, Places, find_places, shipped_student
from pocketfocus.quantize.recipes import TOOLCHAIN_NAMES
from pocketfocus.run.constants import (
    FRAMES,
    RUNS_WITH_PUBLISHED,
    Size,
    check_position,
    size_text,
)
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import SCHEMA_VERSION, writing_failed
from pocketfocus.run.progress import say
from pocketfocus.run.results import BenchRow, GateRow, VerifyRow
from pocketfocus.run.rows import read_rows
from pocketfocus.run.scratch import sweep

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="the folder of the run")]
Run = Annotated[
    Path, typer.Argument(metavar="DIR", help="the folder of a run, made by `build` or `export`")
]
Targets = Annotated[
    str,
    typer.Option("--targets", metavar="A,B", help=f"all, or some of {', '.join(TOOLCHAIN_NAMES)}"),
]
Precisions = Annotated[
    str,
    typer.Option(
        "--precisions",
        metavar="A,B",
        help="all, or some of fp32, fp16, int8, int4, mixed, or a recipe's .yaml file",
    ),
]
Reference = Annotated[
    str,
    typer.Option(
        "--reference",
        metavar="NAME|DIR|HUB_ID",
        help="the model to distil: default, learn2refocus, a diffusers folder, a Hub id, or "
        "UNET_DIR+BASE_DIR; any with :fp16 after it",
    ),
]
Photos = Annotated[
    Path | None,
    typer.Option("--photos", metavar="DIR", help="a folder of your photos; else the bundled ones"),
]
Student = Annotated[
    Path | None,
    typer.Option(
        "--student",
        metavar="DIR",
        help="a student folder, or `student-open`, the one that learned from openly licensed "
        "photos alone; else the shipped one",
    ),
]
Minutes = Annotated[
    float,
    typer.Option(
        "--distill-minutes", metavar="M", help="how long to distil; 0 takes the student as it is"
    ),
]
FromScratch = Annotated[
    bool, typer.Option("--from-scratch", help="distil anew instead of from the student")
]
Stacks = Annotated[
    list[str] | None,
    typer.Option(
        "--stacks",
        metavar="SOURCE",
        help="what to train on: `synthetic` (the default), `photos:DIR` (scenes with textures "
        "from there), `rgbd:DIR` (photos with depth maps), or DIR, a folder of focal stacks; "
        "can be given several times",
    ),
]
SCENES = "how many focal stacks to render of each source"
Seed = Annotated[int, typer.Option("--seed", min=0, help="of every random number")]
Runs = Annotated[
    int,
    typer.Option(
        "--runs",
        min=1,
        help=f"timed calls of each file; from {RUNS_WITH_PUBLISHED} on, the reference sampled as "
        "published too",
    ),
]

Json = Annotated[bool, typer.Option("--json", help="print JSON instead")]
Sizes = Annotated[
    str | None,
    typer.Option(
        "--sizes",
        metavar="own|WxH,WxH",
        help="of the photos that files take beside the student's own, in pixels; else its own on "
        "its side, and a square (own: photos of the other shape lose by it)",
    ),
]
Ios = Annotated[
    int | None,
    typer.Option(
        "--ios", metavar="17|18", help="the oldest iOS that reads the Core ML files; else 18"
    ),
]
FourBit = Annotated[
    str | None,
    typer.Option(
        "--four-bit",
        metavar="palettes|blocks",
        help="how Core ML keeps 4-bit weights; blocks need iOS 18",
    ),
]

ALL, AUTO, OWN = "all", "auto", "own"
RESULTS: dict[str, type[VerifyRow] | type[BenchRow]] = {
    "verify.json": VerifyRow,
    "bench.json": BenchRow,
    "repeat.json": VerifyRow,
}
SAMPLED = 8  # photos of a folder that `verify` takes
SMALLEST_SIDE = 16  # pixels of a photo
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")  # suffixes of what `refocus` writes
NO_FOLDERS = (  # suffixes of images and videos that it does not
    *(".gif", ".webp", ".heic", ".heif", ".avif", ".bmp", ".jp2", ".jxl", ".dng", ".svg", ".psd"),
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".pdf", ".html"),
)


def names(text: str, known: Iterable[str], what: str, also: str = "") -> tuple[str, ...]:
    """Split "a,b" into known names, in order, without repeats; "all" is every known name.

    UserError names the known ones, and what could be given `also`.
    """
    known = tuple(known)
    if text == ALL:
        return known
    choices = f"choose from {', '.join(filter(None, (*known, also)))}, or {ALL}"
    requested = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not requested:
        raise UserError(f"no {what} given: {choices}")
    for name in requested:
        if name not in known:
            raise UserError(f"unknown {what} '{name}': {choices}")
    return requested


def target_names(text: str) -> tuple[str, ...]:
    """Return names of targets; "all" goes without those whose extra is not installed, and says so.

    UserError names the known ones.
    """
    from pocketfocus.export.targets import TARGETS, left_out  # imports torch

    chosen = names(text, TARGETS, "target")
    if text != ALL:
        return chosen
    absent = left_out()
    for name, reason in absent.items():
        say(f"no {name} files: {reason}")
    return tuple(name for name in chosen if name not in absent)


def recipe_names(text: str) -> tuple[str, ...]:
    """Return names of shipped recipes and paths of YAML files, each of which is read as a check."""
    from pocketfocus.quantize.recipes import RECIPES, get_recipe, is_recipe_file

    parts = [part.strip() for part in text.split(",") if part.strip()]
    files = [part for part in parts if is_recipe_file(part)]
    others = [part for part in parts if part not in files]
    for file in files:
        get_recipe(file)
    if files and not others:
        return tuple(dict.fromkeys(files))
    shipped = names(",".join(others), RECIPES, "precision", also="a recipe's .yaml file")
    return tuple(dict.fromkeys((*shipped, *files)))


def print_json(**content: object) -> None:
    """Print a JSON object under the version of its fields."""
    typer.echo(json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=1))


def positions_option(what: str) -> Any:
    """Declare `--positions`, the same in every command: see `positions`."""
    return typer.Option("--positions", metavar="P,P", help=what)


def size_option(what: str) -> Any:
    """Declare `--size`, the same in every command: see `size`."""
    return typer.Option("--size", metavar="WxH|S", help=f"{what}, in pixels")


def size(text: str, smallest: int = 1, option: str = "--size") -> Size:
    """Parse WIDTHxHEIGHT in pixels such as 896x640, or one number for a square, as (H, W)."""
    width, x, height = text.partition("x")
    if not x:
        height = width
    if not (width.isdecimal() and height.isdecimal()):
        raise UserError(
            f"{option} {text} is no size: write WIDTHxHEIGHT in pixels, such as 896x640, or one "
            "number for a square"
        )
    if min(int(width), int(height)) < smallest:
        raise UserError(f"{option} {text} is too small: give at least {smallest} pixels a side")
    return int(height), int(width)


def sizes(text: str | None) -> tuple[Size, ...] | None:
    """Parse sizes as of `size`, with commas between; None where nothing is said, none for `own`."""
    if text is None:
        return None
    parts = () if text == OWN else text.split(",")
    return tuple(size(part.strip(), option="--sizes") for part in parts)


def position(text: str) -> int:
    """Parse a focal position 0 (near, 5 cm) … 8 (infinity)."""
    if text.strip() not in map(str, range(FRAMES)):
        check_position(text)
    return int(text)


def positions(text: str) -> tuple[int, ...]:
    """Parse a list such as "0,4,8" of focal positions, sorted, without repeats."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError("no input position given: name some, such as 0,4,8, with --positions")
    return tuple(sorted({position(part) for part in parts}))


def point(text: str) -> tuple[float, float]:
    """Parse a point X,Y of a photo."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise UserError(
            f"--focus-at {text} is no point: write X,Y in pixels, such as 1200,800, or in "
            "fractions of width and height, such as 0.4,0.6"
        ) from None
    return x, y


def fractions(place: tuple[float, float], size: Size) -> tuple[float, float]:
    """Return a point as fractions of a photo's (H, W); in pixels unless both are below 1.

    UserError for a point outside the photo, and for one of which only one is below 1.
    """
    x, y = place
    height, width = size
    if x >= 1 or y >= 1:
        if any(0 < each < 1 for each in place):
            raise UserError(
                f"--focus-at {x:g},{y:g} is neither in pixels nor in fractions: of the sides both "
                "are below 1, such as 0.99,0.5"
            )
        x, y = x / width, y / height
    if not (0 <= x < 1 and 0 <= y < 1):
        raise UserError(
            f"--focus-at {place[0]:g},{place[1]:g} is outside the photo of {size_text(size)} "
            "pixels: name a point in it"
        )
    return x, y


def picture_file(out: Path, photo: Path) -> Path:
    """Return the file for one picture: `out`, or one in it, a folder, named after the photo.

    UserError for the photo itself, for another suffix, and for what cannot be written.
    """
    _check_name(out)
    if out.is_dir() or not out.suffix:
        output_folder(out, deeper=False)
        out /= f"{photo.stem}-refocused.jpg"
        _check_name(out)
    if out.suffix.lower() not in PICTURES:
        raise UserError(
            f"{out} has no suffix of a picture that is written: name one of "
            f"{', '.join(PICTURES)}, or a folder"
        )
    if out.exists() and photo.exists() and out.samefile(photo):
        raise UserError(f"{out} is the photo itself: name another file with --out")
    return output_file(out)


def minutes(value: float) -> float:
    """Check that minutes are finite and ≥ 0 (typer also takes nan and inf)."""
    if not 0.0 <= value < 1e6:
        raise UserError(f"{value} minutes is no duration: give a number from 0 up")
    return value


def writable(path: Path) -> Path:
    """Return `path`, after a try that something can be made there; leaves nothing behind."""
    _check_name(path)
    found = path
    while not found.exists() and found != found.parent:
        found = found.parent
    try:
        with tempfile.TemporaryFile(dir=found) as handle:
            handle.write(b"\0")
    except OSError as error:
        raise writing_failed(path, error) from error
    return path


def _check_name(path: Path) -> None:
    """Raise UserError for a name that is longer than the system takes."""
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise writing_failed(path, error) from error


def unused(how: str, options: Mapping[str, object]) -> None:
    """Raise UserError for an option that is given where nothing looks at it."""
    for name, value in options.items():
        if value:
            raise UserError(f"{name} changes nothing {how}: leave it out")


def output_folder(path: Path, deeper: bool = True) -> Path:
    """Check that a folder exists or can be made, and can be written to; what a killed command left
    there is swept, `deeper` in the folders in it too."""
    _check_name(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder: choose another folder with --out")
    sweep(path, deeper)
    return writable(path)


def frames_folder(path: Path) -> Path:
    """Check a folder for nine frames, which no name of a picture is."""
    _check_name(path)
    if path.suffix.lower() in PICTURES and not path.exists():
        raise UserError(
            f"{path} is one picture: say which with --focus, --focus-at or --aperture, or name a "
            "folder for nine"
        )
    if path.suffix.lower() in NO_FOLDERS and not path.exists():
        raise UserError(
            f"{path} is one file: name a folder, for nine frames and all that goes with them"
        )
    return output_folder(path, deeper=False)


def output_file(path: Path) -> Path:
    """Check that a file can be written."""
    _check_name(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file: name a file in it with --out")
    writable(path.parent)
    return path


def run_folder(path: Path) -> Path:
    """Check that the folder of a run exists; what a killed command left there is swept."""
    if path.is_file():
        raise UserError(f"{path} is no folder of a run: name the one that holds it")
    if not path.is_dir():
        raise UserError(
            f"{path} is no folder of a run: make one with `pocketfocus build --out {path}`"
        )
    sweep(path, deeper=True)
    return path


def results_folder(path: Path, *files: str) -> Path:
    """Check that rows can be added to files of results of a run, before any is measured."""
    run_folder(path)
    writable(path)
    return earlier_results(path, *files)


def earlier_results(path: Path, *files: str) -> Path:
    """Check that files of results can be read, those that are there: all that are added to."""
    for file in files or RESULTS:
        if (path / file).exists():
            read_rows(path / file, RESULTS[file])
    return path


def student_folder(path: Path | None) -> Path | None:
    """Return the folder of a student by its path or, of a shipped one, its name, after a check that
    it has a config.json; None stands for the shipped student."""
    path = path and (shipped_student(str(path)) or path)
    if path is not None and not (path / "config.json").is_file():
        raise UserError(
            f"{path} is no student folder (it has no config.json): name the student/ of a run, or "
            f"{' or '.join(STUDENTS)}"
        )
    return path


def start_folder(path: Path | None, from_scratch: bool, minutes: float) -> Path | None:
    """Check as `student_folder` what a distillation begins with: from scratch nothing, which takes
    some time to become a student."""
    if from_scratch and not minutes:
        raise UserError("0 minutes train nothing from scratch: give it some, or take a student")
    if path is not None and from_scratch:
        raise UserError(f"--from-scratch begins with no student: leave out --student {path}, or it")
    return student_folder(path)


def photo_files(folder: Path | None) -> list[Path] | None:
    """Return the photos of a folder, in natural order; None stands for the bundled ones."""
    if folder is None:
        return None
    from pocketfocus.data.stacks import read_photos

    return read_photos(folder)


def sample(files: list[Path] | None, everything: bool = False) -> list[Path] | None:
    """Return some of many photos, evenly spread, saying so; all of them where that is wanted."""
    if files is None or everything or len(files) <= SAMPLED:
        return files
    say(f"{SAMPLED} of {len(files)} photos, evenly spread; verify --all-photos takes all")
    return [files[i * (len(files) - 1) // (SAMPLED - 1)] for i in range(SAMPLED)]


def reference(spec: str, find: Callable[[str], Places] = find_places) -> str:
    """Check a reference's name, folder or Hub id as far as is possible without a network, or what a
    fine-tuning starts from, by `find_start`."""
    if find(spec).on_hub:
        quiet.show_downloads()
    return spec


def model(spec: str | None) -> None:
    """Check the reference in `reference:SPEC` and `autoencoder:SPEC`; other models are checked when
    they are opened."""
    kind, _, named = (spec or "").partition("@")[0].partition(":")
    if named and kind in ("reference", "autoencoder") and not Path(spec or "").exists():
        reference(named)


def exit_by_gates(rows: Sequence[GateRow], each_device: bool = False) -> None:
    """Leave with exit code 1 when a gate failed, after one line for each; UserError when there was
    nothing to judge, at all or of `each_device`: see `unjudged`."""
    from pocketfocus.benchmarks.gates import failed, unjudged

    for row in failed(rows):
        say(f"gate failed: {row.artifact}, {row.gate}: {row.why}")
    complain("not verified", unjudged(rows, each_device))
    if failed(rows):
        raise typer.Exit(1)


def complain(what: str, lines: Sequence[str]) -> None:
    """Raise UserError for what could not be done, the first of these lines and how many more."""
    if lines:
        more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
        raise UserError(f"{what}: {lines[0]}{more}; run it again when that is mended")
