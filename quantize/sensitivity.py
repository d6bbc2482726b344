"""What each layer, quantized alone, does to the final stack: measured, saved, and drawn.

    pocketfocus sensitivity build/mine

writes sensitivity.json, a row for each layer and scheme, saved as it grows: an interrupted run goes
on where it stopped. Weights and activations are rounded in eager PyTorch by `quantize.fake`,
weights to the coarsest of the targets' grids; the schemes are those that the targets take of 8 and
4 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pocketfocus.data.optics import one_hot
from pocketfocus.models.student import RefocusStudent, load_student
from pocketfocus.quantize.calibration import Calibration, calibration
from pocketfocus.quantize.fake import Rounded, observe, symmetric
from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import GROUP, Recipe, Rule, Scheme
from pocketfocus.quantize.toolchains import TOOLCHAINS
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, sha256, write_atomic, write_json
from pocketfocus.run.metrics import CAP_DB, PEAK, psnr
from pocketfocus.run.progress import track
from pocketfocus.run.rows import Row, read_rows

SENSITIVITY_FILE, PLOT_FILE = "sensitivity.json", "sensitivity.png"
POSITIONS = (1, 4, 7)
PHOTOS = 8
INT8 = Scheme(8, "affine", "channel", "static")
INT4 = Scheme(4, "affine", GROUP, "dynamic")
CANDIDATES = (INT8, INT4)


class Sensitivity(Row):
    """What one layer with one scheme does to the stack: mean square error and its PSNR over all
    stacks, and the worst stack's."""

    layer: str
    scheme: Scheme
    weights: int
    mse: float
    psnr_db: float
    worst_db: float


def applied_by(target: str, requested: Scheme, network: nn.Module) -> dict[str, Scheme]:
    """What a target takes of one scheme for every layer of a network."""
    recipe = Recipe(name="candidate", min_psnr_db=0.0, rules=(Rule.of("*", requested),))
    return {
        name: choice.scheme for name, choice in TOOLCHAINS[target].choices(recipe, network).items()
    }


def schemes_to_try(network: nn.Module) -> list[tuple[str, Scheme]]:
    """Every layer with every scheme below 16 bits that a target takes of a candidate."""
    tables = [applied_by(t, requested, network) for t in TOOLCHAINS for requested in CANDIDATES]
    return [
        (name, scheme)
        for name in layers_of(network)
        for scheme in dict.fromkeys(table[name] for table in tables)
        if scheme.bits < 16
    ]


def measure(folder: Path, photos: Sequence[Path] | None = None) -> list[Sensitivity]:
    """The rows of every layer and scheme for the student of a run, from its file or measured now.

    `photos` default to the bundled ones that training may use. UserError when the folder holds no
    student, or photos cannot be read.
    """
    student = load_student(folder / "student")
    inputs = calibration(student.photo_size, photos)
    calls = [(photo, at) for photo in inputs.photos[:PHOTOS] for at in POSITIONS]
    path = folder / SENSITIVITY_FILE
    about = {
        "student_sha256": sha256(folder / "student"),
        "calibration_sha256": inputs.sha256,
        "photos": list(inputs.names[:PHOTOS]),
        "positions": list(POSITIONS),
    }
    rows = previous(path, about)
    known = {(row.layer, row.scheme) for row in rows}
    todo = [pair for pair in schemes_to_try(student) if pair not in known]
    if todo:
        for row in measured(student, inputs, calls, todo):
            rows.append(row)
            write_json(path, {**about, "rows": [each.as_json() for each in rows]})
    return rows


def previous(path: Path, about: Mapping[str, object]) -> list[Sensitivity]:
    """The rows of an earlier run about the same student and inputs; none otherwise."""
    if not path.exists():
        return []
    content = read_json(path)
    if any(content.get(key) != value for key, value in about.items()):
        return []
    return read_rows(path, Sensitivity)


@torch.inference_mode()
def measured(
    student: RefocusStudent,
    inputs: Calibration,
    calls: Sequence[tuple[Tensor, int]],
    todo: Sequence[tuple[str, Scheme]],
) -> Iterator[Sensitivity]:
    """Yield a row for every layer and scheme."""
    ranges = observe(student, inputs)
    pairs = [(photo, one_hot(position)) for photo, position in calls]
    truth = [student.stack(*pair) for pair in pairs]
    for name, scheme in track(todo, "layers", len(todo)):
        rounded = Rounded(student, {name: scheme}, ranges, symmetric)
        stacks = [rounded(*pair)[0] for pair in pairs]
        figures = [psnr(a, b) for a, b in zip(stacks, truth, strict=True)]
        errors = [float(((a - b) ** 2).mean()) for a, b in zip(stacks, truth, strict=True)]
        mse = sum(errors) / len(errors)
        yield Sensitivity(
            layer=name,
            scheme=scheme,
            weights=student.get_submodule(name).get_parameter("weight").numel(),
            mse=mse,
            psnr_db=psnr_of(mse),
            worst_db=round(min(figures), 2),
        )


def psnr_of(mse: float) -> float:
    """PSNR (dB) of a mean square error over the range of [-1, 1]."""
    return CAP_DB if mse <= 0 else round(min(CAP_DB, 10 * math.log10(PEAK**2 / mse)), 2)


def plot(rows: Sequence[Sensitivity], path: Path) -> None:
    """Draw the PSNR of every layer, a mark for each scheme; UserError when there is no row."""
    if not rows:
        raise UserError("there is no sensitivity to draw: the student has no layer to quantize")
    layers = list(dict.fromkeys(row.layer for row in rows))
    figure = Figure(figsize=(8, 1 + 0.19 * len(layers)))
    axis = figure.subplots()
    for scheme in dict.fromkeys(row.scheme for row in rows):
        chosen = [row for row in rows if row.scheme == scheme]
        axis.plot(
            [row.psnr_db for row in chosen],
            [layers.index(row.layer) for row in chosen],
            "o",
            markersize=4,
            label=str(scheme),
        )
    axis.set_yticks(range(len(layers)), layers, fontsize=7)
    axis.set(xlabel="PSNR of the stack with this layer alone quantized, dB")
    axis.grid(axis="x", alpha=0.3)
    axis.invert_yaxis()
    axis.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    with write_atomic(path) as scratch:
        figure.savefig(scratch, dpi=120, format="png", bbox_inches="tight")
