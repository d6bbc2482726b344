"""`build`: distil → quantize and export → verify → bench → evaluate → report, in one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer

from pocketfocus.cli import arguments
from pocketfocus.models.places import STUDENT, STUDENTS, WEIGHTS, find_places
from pocketfocus.quantize.recipes import is_recipe_file
from pocketfocus.run.cache import source_hash
from pocketfocus.run.constants import FIRST_LOOK, RUNS, Size
from pocketfocus.run.files import key_of, sha256
from pocketfocus.run.progress import say
from pocketfocus.run.stages import Stage, hashes, run_stages, tools

commands = typer.Typer()

DEVICE = "host"
FEWEST_SCENES, MOST_SCENES = 4, 24  # to distil from: a minute wants the most, less time fewer
SCENES, INPUTS, SIZE = 1, (0, 4, 8), (256, 256)  # small: the reference takes most of it
REPORTED = (
    "manifest.json",
    "verify.json",
    "stacks.npz",
    "bench.json",
    "reference.npz",
    "evaluate.json",
    "distill.json",
    "loss.png",
)


DISTILLED = ("student", "distill.json", "loss.png*")
VERIFIED = ("verify.json", "stacks.npz")
TIMED = ("bench.json", "bench.samples.json*", "reference.npz*")
DISTILLS = ("distill",)
EXPORTS = ("mobile", "quantize", "export")
MEASURES = (*EXPORTS, "benchmarks", "mobile_harness")


@dataclass(frozen=True)
class Settings:
    """A checked `build` command line."""

    out: Path
    reference: str
    student: Path | None
    photos: list[Path] | None
    minutes: float
    from_scratch: bool
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    seed: int
    sizes: tuple[Size, ...] | None = None
    runs: int = RUNS


Inputs = Callable[[], dict[str, object]]
Run = Callable[[Settings], Sequence[str] | None]


@commands.command(epilog="Example: pocketfocus build --photos my/photos --out build/mine")
def build(
    out: arguments.Out = Path("build/run"),
    reference: arguments.Reference = "default",
    student: arguments.Student = None,
    photos: arguments.Photos = None,
    distill_minutes: arguments.Minutes = 1.0,
    from_scratch: arguments.FromScratch = False,
    targets: arguments.Targets = arguments.ALL,
    precisions: arguments.Precisions = arguments.ALL,
    sizes: arguments.Sizes = None,
    runs: arguments.Runs = RUNS,
    seed: arguments.Seed = 0,
) -> None:
    """Run every stage, from distilling to the report; stages that are up to date are skipped."""
    length = arguments.minutes(distill_minutes)
    arguments.earlier_results(arguments.output_folder(out))
    arguments.reference(reference)
    start = arguments.start_folder(student, from_scratch, length)
    files = arguments.photo_files(photos)
    recipes = arguments.recipe_names(precisions)
    chosen = (arguments.target_names(targets), recipes)
    others = arguments.sizes(sizes)
    learning = (out, reference, start, files, length, from_scratch)
    settings = Settings(*learning, *chosen, seed, others, runs)
    try:
        run_stages(settings.out, stages(settings))
    finally:
        if (settings.out / "report.html").exists():
            typer.echo(f"report: {settings.out / 'report.html'}")

    from pocketfocus.run.manifest import load_manifest
    from pocketfocus.run.results import VerifyRow
    from pocketfocus.run.rows import read_current

    current = load_manifest(settings.out).hashes_in(settings.out)
    arguments.exit_by_gates(read_current(settings.out / "verify.json", VerifyRow, current))


def stages(settings: Settings) -> tuple[Stage, ...]:
    """Return the table of stages: what each depends on, the folders of its code, what it writes,
    and what runs it."""
    out, photos = settings.out, hashes(*(settings.photos or ()))

    def requested() -> dict[str, object]:
        return {
            "student": hashes(out / "student"),
            "photos": photos,
            "targets": settings.targets,
            "precisions": settings.precisions,
            "sizes": settings.sizes,
            "recipes": [hashes(Path(p)) for p in settings.precisions if is_recipe_file(p)],
        }

    def files() -> dict[str, object]:
        return {"files": hashes(out / "manifest.json")}

    def files_and_reference() -> dict[str, object]:
        return {**files(), "reference": find_places(settings.reference).key}

    table: tuple[tuple[str, Inputs, tuple[str, ...], tuple[str, ...], Run], ...] = (
        (
            "look",
            lambda: {"start": hashes(_first(settings)), "photos": photos},
            ("export",),
            (FIRST_LOOK,),
            _look,
        ),
        ("distill", lambda: _start(settings), DISTILLS, DISTILLED, _distill),
        ("export", requested, EXPORTS, ("manifest.json", "*/student-*", "*/render-*"), _export),
        ("verify", lambda: {**files(), "photos": photos}, MEASURES, VERIFIED, _verify),
        (
            "bench",
            lambda: {**files_and_reference(), "runs": settings.runs},
            MEASURES,
            TIMED,
            _bench,
        ),
        (
            "evaluate",
            lambda: {**files_and_reference(), "blur": hashes(WEIGHTS / "blur_baseline.json")},
            MEASURES,
            ("evaluate.json", "evaluate.samples.json*"),
            _evaluate,
        ),
        (
            "report",
            lambda: {"files": hashes(*(out / name for name in REPORTED))},
            ("benchmarks",),
            ("report.html",),
            _report,
        ),
    )
    return tuple(
        Stage(name, inputs, code, outputs, partial(run, settings))
        for name, inputs, code, outputs, run in table
    )


def _start(settings: Settings) -> dict[str, object]:
    """Say what a distillation depends on."""
    return {
        "reference": find_places(settings.reference).key,
        "start": hashes(_first(settings)),
        "photos": hashes(*(settings.photos or ())),
        "minutes": settings.minutes,
        "from_scratch": settings.from_scratch,
        "seed": settings.seed,
    }


def _first(settings: Settings) -> Path:
    """Return the folder of the student that is there before anything is distilled."""
    return settings.student or STUDENTS[STUDENT]


def _distilled_of(settings: Settings) -> str:
    """Return the key of all that."""
    return key_of(code=source_hash(*DISTILLS), tools=tools(), **_start(settings))


def _look(settings: Settings) -> None:
    """Show within seconds what it is all about."""
    from pocketfocus.data.scenes import held_out_photos
    from pocketfocus.export.open import open_model
    from pocketfocus.photos.firstlook import save_first_look
    from pocketfocus.photos.pixels import open_photo

    photos = settings.photos
    pixels = open_photo(photos[0]).in_srgb().pixels if photos else held_out_photos()[0]
    path = settings.out / FIRST_LOOK
    first = _first(settings)
    save_first_look(open_model(str(first)), pixels, path, sha256(first))
    say(f"a first look: {path} (focused near, the photo, focused far)")


def _distill(settings: Settings) -> None:
    from pocketfocus.distill.student.options import Distillation
    from pocketfocus.distill.student.stage import distill_run

    how = Distillation(
        settings.minutes,
        reference=settings.reference,
        start=settings.student,
        photos=settings.photos,
        from_scratch=settings.from_scratch,
        seed=settings.seed,
        scenes=max(FEWEST_SCENES, round(MOST_SCENES * min(1.0, settings.minutes))),
    )
    distill_run(settings.out, how, begun_with=_distilled_of(settings))


def _export(settings: Settings) -> None:
    from pocketfocus.export.stage import Export, export_run

    chosen = (settings.targets, settings.precisions)
    request = Export(settings.out, *chosen, sizes=settings.sizes)
    export_run(settings.out / "student", request, settings.photos, say)


def _verify(settings: Settings) -> list[str]:
    from pocketfocus.benchmarks.gates import unjudged
    from pocketfocus.benchmarks.verify import Verification, verify_run
    from pocketfocus.mobile_harness.devices import fallbacks, get_device

    how = Verification(arguments.sample(settings.photos), fallbacks=fallbacks(DEVICE))
    return unjudged(verify_run(settings.out, get_device(DEVICE), how))


def _bench(settings: Settings) -> list[str]:
    from pocketfocus.benchmarks.latency import Bench, bench_run, unmeasured
    from pocketfocus.mobile_harness.devices import get_device

    how = Bench(settings.reference, settings.runs, photos=settings.photos)
    return unmeasured(bench_run(settings.out, get_device(DEVICE), how))


def _evaluate(settings: Settings) -> None:
    from pocketfocus.benchmarks.evaluate import evaluate_run

    evaluate_run(settings.out, settings.reference, SCENES, INPUTS, SIZE)


def _report(settings: Settings) -> None:
    from pocketfocus.benchmarks.report import write_report

    write_report(settings.out)
