"""The model card of a published run: the Hub's header, tables and pictures of what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCardData
from PIL import Image

import pocketfocus
from pocketfocus.benchmarks.charts import grids_chart, latency_chart
from pocketfocus.benchmarks.checks import SHOWN, Pixels
from pocketfocus.benchmarks.measured import MeasuredRun
from pocketfocus.benchmarks.report import distillation, templates
from pocketfocus.benchmarks.tables import distance_table, files_table
from pocketfocus.models.places import find_places, hub_place
from pocketfocus.photos.images import encoded
from pocketfocus.run.constants import size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Manifest

SHOWN_FRAMES = (0, 2, 4, 6, 8)
GAP = 4  # pixels between pictures
NOT_STATED = "No licence is stated: ask whoever published this."
Pictures = Mapping[str, bytes]


@dataclass(frozen=True)
class Publication:
    """What is said of a run beside its figures.

    Attributes:
        title: of the card.
        licence: the Hub's identifier of one, such as apache-2.0; None for none stated.
        doubts: why the run is unproven.
        no_bundle: why there is no golden bundle; "" where there is one.
    """

    title: str
    licence: str | None
    doubts: Sequence[str] = ()
    no_bundle: str = ""


def check_licence(licence: str | None) -> None:
    """Raise UserError for a licence that is no identifier of the Hub's."""
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise UserError(
            f"--licence {licence} is no identifier of the Hub's: write one such as apache-2.0"
        )


def pictures_of(run: MeasuredRun) -> dict[str, bytes]:
    """Return the card's pictures by file name; what was not measured has none."""
    found = {}
    if run.timings:
        found["latency.png"] = latency_chart(run.bench)
    if run.evaluation.cells:
        found["grids.png"] = grids_chart(run.evaluation.cells)
    if "photo" in run.stacks:
        found["stacks.jpg"] = stacks_picture(run)
    return found


def stacks_picture(run: MeasuredRun) -> bytes:
    """Return the photo beside frames of every kept stack, a line a network, as a JPEG."""
    photo = run.stacks["photo"]
    lines: list[Pixels] = []
    for stack in run.stacks.values():
        if stack.ndim == photo.ndim + 1:
            first = photo if not lines else np.full_like(photo, 255)
            frames = [first, *(stack[n] for n in SHOWN_FRAMES)]
            lines.append(np.concatenate([padded(frame) for frame in frames], 1))
    return encoded(Image.fromarray(np.concatenate(lines, 0)), "JPEG", quality=90)


def padded(frame: Pixels) -> Pixels:
    """Return a picture [H,W,3] with white to its right and below."""
    return np.pad(frame, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def card(run: MeasuredRun, about: Publication, pictures: Pictures) -> str:
    """Return the card's text, Markdown under the Hub's YAML header."""
    manifest = run.manifest
    written = manifest.artifacts
    first = written[0] if written else None
    machines = (f"{t.machine} ({t.row.threads or 'its own'} threads)" for t in run.timings)
    environment = templates(keep_trailing_newline=True, lstrip_blocks=True)
    text = environment.get_template("model_card.md").render(
        header=header(manifest, about.licence),
        title=about.title,
        version=pocketfocus.__version__,
        doubts=about.doubts,
        pictures=pictures,
        position=SHOWN[1],
        machines="; ".join(dict.fromkeys(machines)),
        files_table=files_table(run.bench, run.gates) if run.bench else "",
        artifacts=manifest.files,
        render=manifest.render,
        inputs=first.inputs if first else (),
        outputs=first.outputs if first else (),
        sizes=", ".join(map(size_text, manifest.sizes or (manifest.size,))),
        quality=distance_table(run.evaluation.means) if run.evaluation.means else "",
        gates=run.gates,
        bundle=not about.no_bundle,
        no_bundle=about.no_bundle,
        reference=reference_name(manifest.reference) or "not recorded",
        student_sha256=manifest.student_sha256,
        distilled=distilled(run.folder),
        calibration=calibration(manifest),
        recipes=", ".join(dict.fromkeys(a.precision for a in written)),
        tools=manifest.tools,
        licence=f"Licence: {about.licence}." if about.licence else NOT_STATED,
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def header(manifest: Manifest, licence: str | None) -> str:
    """Return the YAML that the Hub reads; a base model only where the reference is on the Hub."""
    tags = ["refocusing", "on-device", *dict.fromkeys(a.target for a in manifest.artifacts)]
    data = ModelCardData(
        license=licence or "other",
        license_name=None if licence else "not-stated",
        base_model=hub_id(manifest.reference),
        library_name=pocketfocus.__name__,
        pipeline_tag="image-to-image",
        tags=tags,
    )
    return str(data.to_yaml()).strip()


def hub_id(reference: str) -> str | None:
    """Return the Hub's id of a reference that lies there, else None."""
    try:
        places = find_places(reference) if reference else None
    except UserError:  # a folder that is gone
        return None
    if places is None or not places.on_hub or Path(places.unet[0]).exists():
        return None
    return hub_place(places.unet[0])[0]


def reference_name(reference: str) -> str:
    """Return what the card calls a reference: of a folder its name, without where it lies."""
    parts = reference.split("+")
    return "+".join(p if not Path(p).is_absolute() else Path(p).name for p in parts)


def distilled(folder: Path) -> str:
    """Return how long the student was distilled for, and how well, in words."""
    found = distillation(folder)
    if not found:
        return "not recorded"
    words = f"{found.get('minutes', 0)} minutes"
    if found.get("steps"):
        words += (
            f", {found['steps']} steps, {found['before_db']:.2f} → {found['after_db']:.2f} dB "
            "against the reference"
        )
    return words


def calibration(manifest: Manifest) -> str:
    """Return what the files were calibrated on, in words."""
    every = (manifest.calibration, *manifest.other_calibrations)
    photos = {photo for each in every for photo in each.get("photo_sha256", {}).values()}
    return f"{len(photos)} photos, hashes in manifest.json" if photos else "none recorded"
