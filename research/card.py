"""The model cards of the shipped weights: figures by distance, data, pictures, failures.

    python -m pocketfocus.research.card student EVALUATION...
    python -m pocketfocus.research.card reference EVALUATION...

write MODEL_CARD.md and docs/reference.md with their pictures, of what `pocketfocus evaluate --out`
wrote; each says which commands. Pictures show rendered validation scenes, whose photos come with
scikit-image.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pocketfocus.benchmarks.charts import grids_chart
from pocketfocus.benchmarks.evaluate import (
    Evaluation,
    read_evaluation,
)
from pocketfocus.benchmarks.tables import distance_table
from pocketfocus.benchmarks.truth import RENDERED, validation_stacks
from pocketfocus.data.stacks import FocalStack
from pocketfocus.export.open import open_model
from pocketfocus.models.autoencoder import QUARTERS
from pocketfocus.models.loading import load_reference
from pocketfocus.models.model import Model, refocus
from pocketfocus.models.places import DEFAULT_WEIGHTS
from pocketfocus.models.student import SHIPPED_WEIGHTS, load_student
from pocketfocus.photos.focusmap import sharpness
from pocketfocus.photos.images import to_image, to_uint8
from pocketfocus.run.constants import FRAMES, Size, size_text
from pocketfocus.run.errors import reported
from pocketfocus.run.files import read_json, size_bytes, write_atomic
from pocketfocus.run.metrics import psnr
from pocketfocus.run.progress import track

TEMPLATES = Path(__file__).parent / "templates"
SCENES = 24  # looked at for pictures
SHOWN, FAILURES = 4, 3
CROP = 72  # pixels
QUALITY = 88  # JPEG
BASELINES = ("copy", "blur", "autoencoder")
FROM = (1, 4, 7)  # input positions, in turn over the scenes


@dataclass(frozen=True)
class Shot:
    """One scene refocused: true and made stacks [9, 3, H, W], the photo's position, gain in dB."""

    name: str
    truth: Tensor
    made: Tensor
    position: int
    gain: float


def shots(model: Model, scenes: Sequence[FocalStack]) -> list[Shot]:
    """Refocus every scene from one position; the gain is over `copy`, off the diagonal."""
    found = []
    for index, scene in enumerate(track(scenes, "refocusing", len(scenes))):
        position = FROM[index % len(FROM)]
        photo = scene.frames[position : position + 1]
        made = refocus(model, photo, position, scene.name)
        others = [at for at in range(FRAMES) if at != position]
        gains = [
            psnr(made[at : at + 1], scene.frames[at : at + 1])
            - psnr(photo, scene.frames[at : at + 1])
            for at in others
        ]
        found.append(Shot(scene.name, scene.frames, made, position, sum(gains) / len(gains)))
    return found


def contact_sheet(found: Sequence[Shot], side: int = 112) -> Image.Image:
    """Draw two rows a scene, the true stack above the made one, near to far."""
    rows = []
    for shot in found:
        for stack in (shot.truth, shot.made):
            frames = [
                to_image(frame).resize((side, side), Image.Resampling.LANCZOS) for frame in stack
            ]
            rows.append(np.concatenate([np.asarray(frame) for frame in frames], 1))
        rows.append(np.full((6, rows[0].shape[1], 3), 255, np.uint8))
    return Image.fromarray(np.concatenate(rows[:-1]))


def farthest(shot: Shot) -> int:
    """Return the output position that differs most from the photo."""
    photo = shot.truth[shot.position]
    return int((shot.truth - photo).pow(2).mean((1, 2, 3)).argmax())


def corners(shot: Shot, to: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return top left of the square that gets sharper and of the one that gets blurred."""
    pair = sharpness(shot.truth[[shot.position, to]]).clamp(min=1e-12).log()
    detail = sharpness(shot.truth).amax(0)
    change = (pair[1] - pair[0]) * (detail > detail.median())
    height, width = change.shape
    squares = change.unfold(0, CROP, 8).unfold(1, CROP, 8).mean((2, 3))

    def place(index: int) -> tuple[int, int]:
        row, column = divmod(index, squares.shape[1])
        return min(8 * row, height - CROP), min(8 * column, width - CROP)

    return place(int(squares.argmax())), place(int(squares.argmin()))


def crops_figure(found: Sequence[Shot]) -> Figure:
    """Draw a row a scene: what should get sharper and what blurred, in photo, made, truth."""
    drawing = Figure(figsize=(11, 2.05 * len(found)), layout="constrained")
    axes = drawing.subplots(len(found), 6, squeeze=False)
    for line, shot in zip(axes, found, strict=True):
        to = farthest(shot)
        stacks = [shot.truth[shot.position], shot.made[to], shot.truth[to]]
        heads = [f"photo (focus {shot.position})", f"made (focus {to})", f"truth (focus {to})"]
        for part, (top, left) in enumerate(corners(shot, to)):
            what = ("should get sharper", "should get blurred")[part]
            for column, (frame, head) in enumerate(zip(stacks, heads, strict=True)):
                axis = line[3 * part + column]
                axis.imshow(to_uint8(frame)[top : top + CROP, left : left + CROP])
                axis.set_title(head if column else f"{head}: {what}", fontsize=6.5)
                axis.axis("off")
    return drawing


def failures_figure(found: Sequence[Shot]) -> Figure:
    """Draw a row a scene: the photo, what was made of it where it differs most, the truth, the
    error."""
    drawing = Figure(figsize=(8.4, 2.3 * len(found)), layout="constrained")
    axes = drawing.subplots(len(found), 4, squeeze=False)
    for line, shot in zip(axes, found, strict=True):
        to = farthest(shot)
        error = (shot.made[to] - shot.truth[to]).abs().mean(0).numpy()
        heads = [
            f"{shot.name}: photo (focus {shot.position})",
            f"made (focus {to}), {shot.gain:+z.2f} dB over copy",
            "truth",
            "error",
        ]
        pictures = [
            to_uint8(shot.truth[shot.position]),
            to_uint8(shot.made[to]),
            to_uint8(shot.truth[to]),
        ]
        for axis, picture in zip(line, pictures, strict=False):
            axis.imshow(picture)
        line[3].imshow(error, cmap="magma", vmin=0, vmax=0.6)
        for axis, head in zip(line, heads, strict=True):
            axis.set_title(head, fontsize=6.5)
            axis.axis("off")
    return drawing


def _save(picture: Image.Image | Figure, path: Path) -> None:
    if isinstance(picture, Figure):
        buffer = BytesIO()
        picture.savefig(buffer, format="png", dpi=110)
        picture = Image.open(buffer, formats=["PNG"]).convert("RGB")
    with write_atomic(path) as scratch:
        picture.save(scratch, "JPEG", quality=QUALITY)


def reference_facts() -> dict[str, object]:
    """Return the sizes of the shipped reference."""
    pipeline = load_reference()
    parameters = {
        name: sum(p.numel() for p in getattr(pipeline, name).parameters()) / 1e6
        for name in ("unet", "vae", "image_encoder")
    }
    radii = pipeline.vae.config.defocus_radii
    return {
        "parameters": parameters,
        "mib": size_bytes(DEFAULT_WEIGHTS) / 2**20,
        "how": pipeline.sampling,
        "radii": ", ".join(map(str, radii)),
        "weights": QUARTERS * len(radii),
        "scenes_trained": read_json(DEFAULT_WEIGHTS / "training.json")["scenes"],
    }


def student_facts() -> dict[str, object]:
    """Return the sizes of the shipped student."""
    student = load_student()
    return {
        "parameters": sum(p.numel() for p in student.parameters()) / 1e6,
        "mib": sum(map(size_bytes, SHIPPED_WEIGHTS.glob("*.safetensors"))) / 2**20,
        "size": size_text(student.photo_size),
    }


@dataclass(frozen=True)
class Subject:
    """What a card is about: a model, by the name by which it is opened.

    `size` is that of the scenes in its pictures, (H, W).
    """

    name: str
    card: Path
    pictures: Path
    size: Size
    facts: Callable[[], dict[str, object]]


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("student", Path("MODEL_CARD.md"), Path("docs/student"), (320, 448), student_facts),
        Subject(
            "reference",
            Path("docs/reference.md"),
            Path("docs/reference"),
            RENDERED,
            reference_facts,
        ),
    )
}


def card(subject: Subject, tables: Sequence[Evaluation], found: Sequence[Shot]) -> str:
    """Return the text of a card."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    gains = sorted(shot.gain for shot in found)
    template = (TEMPLATES / f"{subject.name}_card.md").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        tables=[distance_table(table.means) for table in tables],
        grids=[grid_name(table) for table in tables],
        scenes=len(found),
        worse=sum(gain < 0 for gain in gains),
        worst=gains[0],
        median=gains[len(gains) // 2],
        best=gains[-1],
        pictures=subject.pictures.relative_to(subject.card.parent).as_posix(),
        **subject.facts(),
    )


def grid_name(table: Evaluation) -> str:
    """Return the file of a table's grids: by its stacks, and the models scored."""
    return f"grid-{table.means[0].stacks}.png"


def write_card(
    subject: Subject, tables: Sequence[Evaluation], found: Sequence[Shot], out: Path
) -> None:
    """Write a card and its pictures under a folder; UserError when that fails."""
    ranked = sorted(found, key=lambda shot: shot.gain)
    typical = ranked[len(ranked) // 2 :][: 2 * SHOWN : 2] or ranked
    pictures = out / subject.pictures
    _save(contact_sheet(typical), pictures / "stacks.jpg")
    _save(crops_figure(typical), pictures / "crops.jpg")
    _save(failures_figure(ranked[:FAILURES]), pictures / "failures.jpg")
    for table in tables:
        cells = [cell for cell in table.cells if cell.model not in BASELINES[1:]]
        with write_atomic(pictures / grid_name(table)) as scratch:
            scratch.write_bytes(grids_chart(cells))
    with write_atomic(out / subject.card) as scratch:
        scratch.write_text(card(subject, tables, found), encoding="utf-8")


@reported("card")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write a card; see the module's docstring."""
    parser = argparse.ArgumentParser(description="write a model card and its pictures")
    parser.add_argument("subject", choices=list(SUBJECTS))
    parser.add_argument("evaluations", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--scenes", type=int, default=SCENES, help="to choose pictures from")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder that gets both")
    options = parser.parse_args(arguments)
    subject = SUBJECTS[options.subject]
    tables = [read_evaluation(path) for path in options.evaluations]
    scenes = validation_stacks(options.scenes, subject.size)
    found = shots(open_model(subject.name), scenes)
    write_card(subject, tables, found, options.out)


if __name__ == "__main__":
    main()
