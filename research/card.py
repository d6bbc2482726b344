"""Figures and pictures of the model cards of the shipped weights: by distance, and failures.

    python -m pocketfocus.research.card student EVALUATION...
    python -m pocketfocus.research.card reference EVALUATION...

print what MODEL_CARD.md and docs/reference.md say of what `pocketfocus evaluate --out` wrote, and
write their pictures; each card says which commands. Pictures show rendered validation scenes, whose
photos come with scikit-image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pocketfocus.benchmarks.charts import grids_chart
from pocketfocus.benchmarks.evaluation import Evaluation, read_evaluation
from pocketfocus.benchmarks.tables import distance_table
from pocketfocus.benchmarks.truth import RENDERED, validation_stacks
from pocketfocus.data.stacks import FocalStack
from pocketfocus.export.open import open_model
from pocketfocus.export.targets import target_of
from pocketfocus.models.model import Model, refocus
from pocketfocus.photos.focusmap import sharpness
from pocketfocus.photos.images import to_uint8
from pocketfocus.run.constants import FRAMES, Size
from pocketfocus.run.errors import reported
from pocketfocus.run.files import write_atomic
from pocketfocus.run.metrics import psnr
from pocketfocus.run.progress import track

SCENES = 24  # looked at for pictures
SHOWN, FAILURES = 4, 3
SIDE, CROP = 112, 72  # pixels
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
        made = refocus(model, photo, position, scene.name, scene.aspect)
        others = [at for at in range(FRAMES) if at != position]
        gains = [
            psnr(made[at : at + 1], scene.frames[at : at + 1])
            - psnr(photo, scene.frames[at : at + 1])
            for at in others
        ]
        found.append(Shot(scene.name, scene.frames, made, position, sum(gains) / len(gains)))
    return found


def contact_sheet(found: Sequence[Shot]) -> Image.Image:
    """Draw two rows a scene, the true stack above the made one, near to far."""
    rows = []
    for shot in found:
        for stack in (shot.truth, shot.made):
            frames = [Image.fromarray(frame) for frame in to_uint8(stack)]
            size = (SIDE, SIDE * frames[0].height // frames[0].width)
            small = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
            rows.append(np.concatenate([np.asarray(frame) for frame in small], 1))
        rows.append(np.full((6, rows[0].shape[1], 3), 255, np.uint8))
    return Image.fromarray(np.concatenate(rows[:-1]))


def farthest(shot: Shot) -> int:
    """Return the output position that differs most from the photo."""
    photo = shot.truth[shot.position]
    return int((shot.truth - photo).pow(2).mean((1, 2, 3)).argmax())


@dataclass(frozen=True)
class Crop:
    """A square of a scene in one of its frames: its position, top and left."""

    to: int
    top: int
    left: int


def changes(shot: Shot) -> tuple[Crop, Crop]:
    """Return what gets sharper the most of all frames, and what gets blurred the most."""
    detail = sharpness(shot.truth).sqrt()
    change = detail - detail[shot.position]
    squares = change.unfold(1, CROP, 8).unfold(2, CROP, 8).mean((3, 4))

    def crop(index: Tensor) -> Crop:
        to, row, column = (int(each) for each in torch.unravel_index(index, squares.shape))
        return Crop(to, 8 * row, 8 * column)

    return crop(squares.argmax()), crop(squares.argmin())


def crops_figure(found: Sequence[Shot]) -> Figure:
    """Draw a row a scene: what should get sharper and what blurred, in photo, made, truth."""
    drawing = Figure(figsize=(11, 2.05 * len(found)), layout="constrained")
    axes = drawing.subplots(len(found), 6, squeeze=False)
    for line, shot in zip(axes, found, strict=True):
        for part, (what, crop) in enumerate(
            zip(("sharper", "blurred"), changes(shot), strict=True)
        ):
            frames = [shot.truth[shot.position], shot.made[crop.to], shot.truth[crop.to]]
            heads = [f"photo (focus {shot.position}): should get {what}"]
            heads += [f"{name} (focus {crop.to})" for name in ("made", "truth")]
            for axis, frame, head in zip(line[3 * part :], frames, heads, strict=False):
                rows, columns = (slice(at, at + CROP) for at in (crop.top, crop.left))
                axis.imshow(to_uint8(frame)[rows, columns])
                axis.set_title(head, fontsize=6.5)
                axis.axis("off")
    return drawing


def failures_figure(found: Sequence[Shot]) -> Figure:
    """Draw a row a scene: the photo, what was made of it where it differs most, the truth, the
    error."""
    height, width = found[0].truth.shape[-2:]
    row = 2.05 * height / width + 0.25  # inches
    drawing = Figure(figsize=(8.4, row * len(found)), layout="constrained")
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


# Of each model: the folder of its pictures, and the size of the scenes in them.
SUBJECTS: dict[str, tuple[Path, Size]] = {
    "student": (Path("docs/student"), (320, 448)),
    "reference": (Path("docs/reference"), RENDERED),
}


def failures(found: Sequence[Shot]) -> str:
    """Return in words how many scenes came out worse than the photo, and all gains."""
    gains = sorted(shot.gain for shot in found)
    return (
        f"Of {len(gains)} scenes, each refocused from one position, {sum(g < 0 for g in gains)} "
        f"came out worse than repeating the photo. The gains over `copy` go from {gains[0]:+.2f} "
        f"dB to {gains[-1]:+.2f} dB, the median is {gains[len(gains) // 2]:+.2f} dB."
    )


def named(table: Evaluation) -> Evaluation:
    """The same, with files named as in their run, wherever that lies on this machine."""

    def name(model: str) -> dict[str, str]:
        path = Path(model)
        return {"model": "/".join(path.parts[-2:]) if target_of(path) else model}

    return Evaluation(
        [cell.model_copy(update=name(cell.model)) for cell in table.cells],
        [mean.model_copy(update=name(mean.model)) for mean in table.means],
    )


def write_pictures(tables: Sequence[Evaluation], found: Sequence[Shot], pictures: Path) -> None:
    """Write a card's pictures into a folder; UserError when that fails."""
    ranked = sorted(found, key=lambda shot: shot.gain)
    typical = ranked[len(ranked) // 2 :][: 2 * SHOWN : 2] or ranked
    _save(contact_sheet(typical), pictures / "stacks.jpg")
    _save(crops_figure(typical), pictures / "crops.jpg")
    _save(failures_figure(ranked[:FAILURES]), pictures / "failures.jpg")
    for table in tables:
        cells = [cell for cell in table.cells if cell.model not in BASELINES[1:]]
        with write_atomic(pictures / f"grid-{table.means[0].stacks}.png") as scratch:
            scratch.write_bytes(grids_chart(cells))


@reported("card")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a card's figures and write its pictures."""
    parser = argparse.ArgumentParser(description="figures and pictures of a model card")
    parser.add_argument("subject", choices=list(SUBJECTS))
    parser.add_argument("evaluations", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--scenes", type=int, default=SCENES, help="to choose pictures from")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder that holds docs/")
    options = parser.parse_args(arguments)
    pictures, size = SUBJECTS[options.subject]
    tables = [named(read_evaluation(path)) for path in options.evaluations]
    found = shots(open_model(options.subject), validation_stacks(options.scenes, size))
    write_pictures(tables, found, options.out / pictures)
    print(*(distance_table(table.means) for table in tables), failures(found), sep="\n\n")


if __name__ == "__main__":
    main()
