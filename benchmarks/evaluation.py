"""The rows of evaluate.json, and which of them tell of a run's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from pocketfocus.benchmarks.samples import Scenes, read_scenes
from pocketfocus.run.constants import FRAMES, SELF_ENSEMBLE
from pocketfocus.run.manifest import SHOWN_DIGITS, Manifest
from pocketfocus.run.progress import say
from pocketfocus.run.rows import Row, contents, part_of

EVALUATE_FILE = "evaluate.json"

Position = Annotated[int, Field(ge=0, lt=FRAMES)]
R = TypeVar("R", "Cell", "Means")


class Cell(Row):
    """Mean scores of a model from one input position to one output position.

    Attributes:
        sharper_gain_db: over the images with places that the truth has sharper (`scores.Score`), as
            is `restored`; None where there is none.
        pooled_psnr_db: of the mean squared error of all images; None in files of older versions.
        vif: over the images that have one; None where none has.
        lpips, dists: None where VGG16's weights were not given.
    """

    model: str
    stacks: str
    input_position: Position
    output_position: Position
    psnr_db: float
    ssim: float
    sharper_gain_db: float | None = None
    restored: float | None = None
    pooled_psnr_db: float | None = None
    vif: float | None = None
    lpips: float | None = None
    dists: float | None = None

    @property
    def distance(self) -> int:
        """Positions between input and output."""
        return abs(self.input_position - self.output_position)


class Means(Row):
    """Means over one model's cells; a mean over no cell is None.

    Attributes:
        psnr_db_by_distance: by the positions between input and output, written as text.
        scenes: how many were scored.
        gain_db: over `copy`, off the diagonal; None where copy was not scored.
        gain_error_db: its standard error over the scenes; None for one scene.
        sharper_gain_db: over repeating the photo where the truth is sharper, off the diagonal.
        restored: the share of the missing detail that was restored there.
        pooled_psnr_db_off_diagonal: the mean of the cells' `pooled_psnr_db`.
        focus_accuracy: the share of patches whose sharpest frame is the true one.
        focus_error: by how many positions the sharpest frame is off, on average.
        no_worse_than_copy: the share of images off the diagonal whose PSNR is at least that of
            `copy`; None where copy was not scored, and for itself.
        no_worse_than_reference: the same of the first reference among the models.
        fid: how far the images off the diagonal are from the true ones as a set; None where
            Inception's weights were not given.
        fid_images: how many images that is of.
        sha256: of the file, or of the student's folder; None for other models, and in files of
            older versions.
    """

    model: str
    stacks: str
    mean_psnr_db: float | None
    mean_ssim: float | None
    mean_psnr_db_off_diagonal: float | None
    mean_ssim_off_diagonal: float | None
    psnr_db_by_distance: dict[str, float | None]
    scenes: int
    gain_db: float | None = None
    gain_error_db: float | None = None
    sharper_gain_db: float | None = None
    restored: float | None = None
    pooled_psnr_db_off_diagonal: float | None = None
    focus_accuracy: float | None = None
    focus_error: float | None = None
    mean_vif_off_diagonal: float | None = None
    mean_lpips_off_diagonal: float | None = None
    mean_dists_off_diagonal: float | None = None
    no_worse_than_copy: float | None = None
    no_worse_than_reference: float | None = None
    fid: float | None = None
    fid_images: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores of models on one set of stacks, in the order of the models."""

    cells: Sequence[Cell]
    means: Sequence[Means]

    def rows(self) -> list[Row]:
        """Return the rows of evaluate.json: the cells, then the means."""
        return [*self.cells, *self.means]

    def of_files(self, files: Mapping[str, str | None]) -> Evaluation:
        """Return this with the hashes of the models' files, by the models' names."""
        hashes = ((row, files.get(row.model)) for row in self.means)
        return Evaluation(
            self.cells,
            [row.model_copy(update={"sha256": of}) if of else row for row, of in hashes],
        )


def read_evaluation(path: Path) -> Evaluation:
    """Return what `Evaluation.rows` wrote; UserError for a file that holds no evaluation."""
    cells: list[Cell] = []
    means: list[Means] = []
    for number, row in enumerate(contents(path), 1):
        place = f"{path}, row {number}"
        if isinstance(row, dict) and "input_position" in row:
            cells.append(part_of(place, Cell, row))
        else:
            means.append(part_of(place, Means, row))
    return Evaluation(cells, means)


def evaluation_of(
    folder: Path, manifest: Manifest, files: Mapping[str, str]
) -> tuple[Evaluation, dict[str, Scenes]]:
    """Return a run's evaluation, and its scenes' scores by model; empty where there is none.

    `evaluate` knows models by their paths: the run's own get their names in it, told by their
    hashes in `files`. What was one of them and is another file now is left out, which is said in
    one line. All other models stay.
    """
    path = folder / EVALUATE_FILE
    if not path.exists():
        return Evaluation((), ()), {}
    found = read_evaluation(path)
    names: dict[str, str] = {}
    for suffix in ("", SELF_ENSEMBLE):  # what was called as the suffix says, by the same rules
        rows = (row for row in found.means if row.model.endswith(SELF_ENSEMBLE) == bool(suffix))
        plain = [row.model_copy(update={"model": row.model.removesuffix(suffix)}) for row in rows]
        named = names_in(folder, manifest, files, plain)
        names |= {f"{model}{suffix}": f"{name}{suffix}" for model, name in named.items()}
    left_out = {row.model for row in found.means} - names.keys()
    if left_out:
        say(
            f"{path}: {len(left_out)} of {len(found.means)} models left out, which are other files "
            "than the run has now: run evaluate again"
        )

    def called(rows: Sequence[R]) -> list[R]:
        kept = (row for row in rows if row.model not in left_out)
        return [row.model_copy(update={"model": names.get(row.model, row.model)}) for row in kept]

    scenes = {names.get(m, m): of for m, of in read_scenes(path).items() if m not in left_out}
    return Evaluation(called(found.cells), called(found.means)), scenes


def names_in(
    folder: Path, manifest: Manifest, files: Mapping[str, str], means: Sequence[Means]
) -> dict[str, str]:
    """Return what a run calls the models of its evaluation, without those to be left out.

    One that is not the run's and is called as if it were, as the shipped `student` is, gets its
    hash into its name.
    """
    places = {row.model: place_of(row.model, manifest) for row in means}
    own: dict[str, str] = {}
    for row in means:
        place = places[row.model]
        is_own = place and row.sha256 and row.sha256 == files.get(place)
        if place and is_own and (place not in own or lies_in(folder, row.model, place)):
            own[place] = row.model
    names = {}
    for row in means:
        model, place = row.model, places[row.model]
        if place is None:
            names[model] = model
        elif own.get(place) == model:
            names[model] = place
        elif row.sha256 and model == place and place in own:
            names[model] = f"{model} ({row.sha256[:SHOWN_DIGITS]})"
        elif row.sha256 and model != place and not lies_in(folder, model, place):
            names[model] = model
    return names


def place_of(model: str, manifest: Manifest) -> str | None:
    """Return as which of a run's files a model's path ends."""
    return next((name for name in manifest.hashes if f"/{model}".endswith(f"/{name}")), None)


def lies_in(folder: Path, model: str, place: str) -> bool:
    """Return whether a path is that of a run's file, as far as it tells: it may have been given
    from another working folder."""
    path = (folder / place).resolve()
    return model != place and (Path(model).resolve() == path or f"{path}".endswith(f"/{model}"))
