"""The report of a run: one self-contained HTML page of tables, plots and stacks side by side.

Everything on it is read from the run's own files; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jinja2
from PIL import Image

import pocketfocus
from pocketfocus.benchmarks.charts import grids_chart, latency_chart, size_chart, sustained_chart
from pocketfocus.benchmarks.checks import SHOWN, STACKS_FILE, Pixels
from pocketfocus.benchmarks.evaluation import evaluation_of
from pocketfocus.benchmarks.gates import parity_rows
from pocketfocus.benchmarks.latency import BENCH_FILE, REFERENCE_STACK_FILE, Ratio, ratios
from pocketfocus.benchmarks.measured import same_photo, shown_stacks, stacks_of
from pocketfocus.benchmarks.notes import notes_rows, throttles
from pocketfocus.benchmarks.phones import fits, kinds, phones
from pocketfocus.benchmarks.tables import percent
from pocketfocus.benchmarks.verify import VERIFY_FILE
from pocketfocus.data.optics import distance
from pocketfocus.export.targets import get_target
from pocketfocus.photos.firstlook import student_of
from pocketfocus.photos.images import data_uri, encoded
from pocketfocus.run.constants import FIRST_LOOK, FRAMES, size_text
from pocketfocus.run.files import read_json, write_atomic
from pocketfocus.run.manifest import Artifact, check_artifact, load_manifest, makes_stacks
from pocketfocus.run.progress import say
from pocketfocus.run.results import BenchRow, GateStatus, VerifyRow
from pocketfocus.run.rows import read_current

REPORT_FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Strip:
    """One model's focal stack on the page: nine pictures as data URIs, near to far."""

    name: str
    frames: tuple[str, ...]


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html from the run's files and return its path.

    manifest.json, its files, verify.json and bench.json must be there (UserError otherwise); the
    stacks, the evaluation and the training log are shown where they exist.
    """
    html = render(folder)
    path = folder / REPORT_FILE
    with write_atomic(path) as scratch:
        scratch.write_text(html, encoding="utf-8")
    return path


def render(folder: Path) -> str:
    """Return the page as one string."""
    manifest = load_manifest(folder)
    for artifact in manifest.files:
        check_artifact(folder, artifact)
    files = manifest.hashes_in(folder)
    verify = read_current(folder / VERIFY_FILE, VerifyRow, files)
    bench = read_current(folder / BENCH_FILE, BenchRow, files)
    scores, _ = evaluation_of(folder, manifest, files)
    shown = shown_stacks(folder, verify)
    sustained = sustained_chart(bench)
    return page("report.html").render(
        version=pocketfocus.__version__,
        manifest=manifest,
        gates=verify,
        counts={s: sum(r.status == s for r in verify) for s in get_args(GateStatus)},
        headline=headline(bench, verify),
        unproven=unproven(manifest.files, verify),
        bench=bench,
        latency=latency_rows(bench),
        browsers=[(row, throttles(row.sustained)) for row in bench if row.is_of_browser],
        sustained=data_uri(sustained) if sustained else None,
        notes=notes_rows(bench),
        phones=phones(),
        kinds=kinds(),
        fits=fits(bench, manifest),
        fp32_bytes={a.target: a.bytes for a in manifest.artifacts if a.precision == "fp32"},
        means=scores.means,
        strips=strips(folder, shown),
        photo=photo_uri(shown),
        shown_position=SHOWN[1],
        positions=[f"{p} · {distance(p)}" for p in range(FRAMES)],
        latency_chart=data_uri(latency_chart(bench)),
        size_chart=data_uri(size_chart(manifest)),
        grids=data_uri(grids_chart(scores.cells)) if scores.cells else None,
        first=file_uri(folder / FIRST_LOOK),
        first_student=student_of(folder / FIRST_LOOK),
        loss=file_uri(folder / "loss.png"),
        distillation=distillation(folder),
    )


def page(name: str) -> jinja2.Template:
    """Return the template of a self-contained page, its style inside."""
    environment = templates(autoescape=True)
    environment.filters["number"] = number
    environment.filters["percent"] = percent
    environment.filters["size"] = size_text
    environment.filters["mib"] = lambda value: number(value / 2**20, 2) if value else "–"
    environment.globals["style"] = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return environment.get_template(name)


def templates(**options: Any) -> jinja2.Environment:
    """Return what renders the templates here."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(undefined=jinja2.StrictUndefined, loader=loader, **options)


def number(value: float | None, digits: int = 1) -> str:
    """Return a figure for a table: fixed digits, thousands apart, a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")


def headline(bench: Sequence[BenchRow], verify: Sequence[VerifyRow]) -> list[tuple[str, str]]:
    """Return the few figures a reader wants first, as (figure, what it is)."""
    passed = {(r.artifact, r.device) for r in parity_rows(verify) if r.status == "pass"}
    timed = [
        r for r in ratios(bench) if (r.artifact, r.device) in passed and r.artifact != "student"
    ]
    if not timed:
        return []
    fastest = max(timed, key=lambda r: r.to_student or 0.0)
    kinds_passed = {
        (row.target, row.precision, row.device)
        for row in parity_rows(verify)
        if row.status == "pass" and makes_stacks(row.artifact)
    }
    frames = [
        (row.p50_ms, row.photo, row)
        for row in bench
        if row.photo and row.p50_ms and (row.target, row.precision, row.device) in kinds_passed
    ]
    p50 = {(row.artifact, row.device): row.p50_ms for row in bench}
    facts = [
        (
            f"{p50[fastest.artifact, fastest.device]:.1f} ms",
            f"a stack with {fastest.artifact}, p50 on {fastest.device}",
        )
    ]
    if frames:
        ms, photo, row = min(frames, key=lambda each: each[0])
        what = f"nine frames of {size_text(photo)} pixels ({row.artifact})"
        facts.append((f"{ms:,.0f} ms", f"{what}, p50 on {row.device}"))
    if fastest.to_reference:
        facts.append((f"{fastest.to_reference:,.0f}×", "faster than the reference pipeline"))
    if fastest.to_published:
        facts.append((f"{fastest.to_published:,.0f}×", "faster than its 25 steps with guidance"))
    if fastest.to_student:
        facts.append((f"{fastest.to_student:.1f}×", "faster than the eager fp32 student"))
    return facts


def unproven(files: Sequence[Artifact], verify: Sequence[VerifyRow]) -> dict[str, list[str]]:
    """Return, by whose hardware they are for, files that passed no parity gate on it: what executes
    them in its place proves what they mean, not what a device makes of them."""
    passed = {(r.artifact, r.device) for r in parity_rows(verify) if r.status == "pass"}
    found: dict[str, list[str]] = {}
    for artifact in files:
        target = get_target(artifact.target)
        devices = {device for name, device in passed if name == artifact.name}
        if target.hardware and not devices - {target.fallback}:
            found.setdefault(target.hardware, []).append(artifact.name)
    return found


def latency_rows(bench: Sequence[BenchRow]) -> list[tuple[BenchRow, Ratio]]:
    """Return rows of bench.json with their speed-ups."""
    found = {(r.artifact, r.device): r for r in ratios(bench)}
    return [
        (row, found.get((row.artifact, row.device), Ratio(row.artifact, row.device)))
        for row in bench
    ]


def strips(folder: Path, shown: Mapping[str, Pixels]) -> list[Strip]:
    """Return the reference's stack that bench kept, where it is of the same photo, and those of the
    student and of every executed file."""
    reference = stacks_of(folder / REFERENCE_STACK_FILE)
    if reference and shown and not same_photo(reference, shown):
        say(
            f"{folder / REFERENCE_STACK_FILE} is left out, not known to be of the photo of "
            f"{STACKS_FILE}: run verify and bench with the same --photos"
        )
        reference = {}
    return [
        Strip(name, tuple(picture_uri(frame) for frame in stack))
        for stacks in (reference, shown)
        for name, stack in stacks.items()
        if stack.ndim == 4
    ]


def photo_uri(shown: Mapping[str, Pixels]) -> str | None:
    """Return the photo that the shown stacks were made of."""
    photo = shown.get("photo")
    return None if photo is None or photo.ndim != 3 else picture_uri(photo)


def picture_uri(pixels: Pixels) -> str:
    """Return a uint8 picture [H,W,3] as a JPEG data URI."""
    return data_uri(encoded(Image.fromarray(pixels), "JPEG", quality=JPEG_QUALITY), "jpeg")


def file_uri(path: Path) -> str | None:
    """Return a picture's file as a data URI, None when there is none."""
    kind = path.suffix.removeprefix(".").replace("jpg", "jpeg")
    return data_uri(path.read_bytes(), kind) if path.exists() else None


def distillation(folder: Path) -> dict[str, object]:
    """Return what the distill stage said of itself, empty when it did not run here."""
    path = folder / "distill.json"
    return read_json(path) if path.exists() else {}
