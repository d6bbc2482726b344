"""A run as a folder for the Hub: its files, manifest, golden bundle, results, and a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pocketfocus.benchmarks.checks import is_of_networks
from pocketfocus.benchmarks.evaluation import EVALUATE_FILE
from pocketfocus.benchmarks.gates import STUDENT
from pocketfocus.benchmarks.golden import REPLAY_FILE, write_golden
from pocketfocus.benchmarks.latency import BENCH_FILE
from pocketfocus.benchmarks.measured import MeasuredRun, read_run
from pocketfocus.benchmarks.model_card import Publication, card, pictures_of, reference_name
from pocketfocus.benchmarks.proof import doubts
from pocketfocus.benchmarks.saved import GOLDEN_FILE, named_in
from pocketfocus.benchmarks.verify import VERIFY_FILE
from pocketfocus.mobile_harness.device import Device
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import check_replaceable, copy, write_atomic
from pocketfocus.run.manifest import MANIFEST_FILE, load_manifest
from pocketfocus.run.paths import below
from pocketfocus.run.rows import write_rows

CARD_FILE = "README.md"  # what the Hub shows
PICTURES = "pictures"


def prove(folder: Path, unproven: bool) -> tuple[MeasuredRun, list[str]]:
    """Return a run that may be published, and what is not proven of it.

    UserError for one that holds no student's files, and for what is not proven unless it is told
    that this is known.
    """
    run = read_run(folder)
    if is_of_networks(run.manifest) or not run.manifest.artifacts:
        raise UserError(
            f"{folder} holds no file of a student to publish: `pocketfocus build --out {folder}` "
            "writes them"
        )
    found = doubts(run)
    if found and not unproven:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError(
            f"{folder} is not proven: {found[0]}{more}; mend it, or publish it with --unproven, "
            "which the card then says"
        )
    return run, found


def publish(run: MeasuredRun, out: Path, about: Publication, devices: Sequence[Device]) -> Path:
    """Write the folder `out`, atomically, and return it.

    The golden bundle is its root: every file is executed once more on `devices` for it. Where the
    run is unproven and no bundle can be made, the card says so.
    """
    check_published(out)
    with write_atomic(out) as scratch:
        about = replace(about, no_bundle=lay_files(run, scratch, about, devices))
        copy(run.folder / STUDENT, scratch / STUDENT)
        lay_results(run, scratch)
        pictures = pictures_of(run)
        (scratch / PICTURES).mkdir()
        for name, content in pictures.items():
            (scratch / PICTURES / name).write_bytes(content)
        text = private(run.folder, card(run, about, pictures))
        (scratch / CARD_FILE).write_text(text, encoding="utf-8")
    return out


def check_published(out: Path) -> None:
    """Raise UserError unless a folder may be replaced whole: it is new, or an earlier publication
    and nothing beside it, such as the .git of a clone."""
    marks = (CARD_FILE, PICTURES, MANIFEST_FILE)
    check_replaceable(out, marks, "--out")
    if not (out / MANIFEST_FILE).exists():
        return
    results = (VERIFY_FILE, BENCH_FILE, EVALUATE_FILE, GOLDEN_FILE, REPLAY_FILE)
    files = (artifact.name for artifact in load_manifest(out).files)
    check_replaceable(out, marks, "--out", {*marks, STUDENT, *results, *files, *named_in(out)})


def lay_files(
    run: MeasuredRun, scratch: Path, about: Publication, devices: Sequence[Device]
) -> str:
    """Write the files with their golden bundle; without it, return why."""
    why = ""
    try:
        write_golden(run.folder, scratch, devices)
    except UserError as error:
        if not about.doubts:
            raise
        why = str(error)
    for artifact in run.manifest.files:
        if not below(scratch, artifact.name).exists():
            copy(below(run.folder, artifact.name), below(scratch, artifact.name))
    return why


def lay_results(run: MeasuredRun, scratch: Path) -> None:
    """Write the manifest and what was measured, without the paths of this machine."""
    reference = reference_name(run.manifest.reference)
    replace(run.manifest, reference=reference).save(scratch)
    for name in (VERIFY_FILE, BENCH_FILE):
        if (run.folder / name).exists():
            text = (run.folder / name).read_text(encoding="utf-8")
            (scratch / name).write_text(private(run.folder, text), encoding="utf-8")
    if run.evaluation.means:
        write_rows(scratch / EVALUATE_FILE, run.evaluation.rows())


def private(folder: Path, text: str) -> str:
    """Return a text without the place of a run, as it stands there plain or in JSON."""
    for place in {str(folder), str(folder.resolve())} - {"."}:
        text = text.replace(json.dumps(place)[1:-1], ".").replace(place, ".")
    return text
