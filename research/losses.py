"""What quantization costs against true focal stacks: every file's PSNR beside the fp32 student's.

    python -m pocketfocus.research.losses DIR synthetic learn2refocus-sample --scenes 9

writes DIR/losses.json, a row a file and source of stacks, which `research.quantization` prints.
Files of Core ML are executed by the MIL check where Core ML is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pocketfocus.benchmarks.checks import load_parent
from pocketfocus.benchmarks.evaluate import (
    Comparison,
    Means,
    evaluate_models,
)
from pocketfocus.benchmarks.truth import source_name, true_stacks
from pocketfocus.data.datasets import check_source
from pocketfocus.data.optics import one_hot
from pocketfocus.export.open import open_model
from pocketfocus.export.targets import get_target
from pocketfocus.models.analyse import Analyser
from pocketfocus.models.model import Model, NamedModel
from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.manifest import Artifact, check_artifact, load_manifest
from pocketfocus.run.rows import Row, write_rows

LOSSES_FILE = "losses.json"
STUDENT = "student"
MOST_DB = {8: 0.1, 4: 0.3}
"""What a file may lose against true stacks, by the fewest bits of its layers."""


class Loss(Row):
    """A row of losses.json: PSNR off the diagonal of a file and of its student on the same stacks.

    `most_db` is None, and the status `pass`, where no limit is set.
    """

    artifact: str
    stacks: str
    scenes: int
    psnr_db: float
    student_db: float
    loss_db: float
    most_db: float | None
    status: str


def losses(
    folder: Path,
    sources: Sequence[str],
    scenes: int,
    inputs_per_scene: int = 3,
    size: Size | None = None,
) -> list[Loss]:
    """Score every file of a run and its student on the same true stacks.

    UserError for a file that is damaged or cannot be executed here, and for unknown sources.
    """
    for source in sources:
        check_source(source)
    manifest = load_manifest(folder)
    artifacts = manifest.artifacts
    models = [opened(folder, artifact, manifest.size) for artifact in artifacts]
    student = load_parent(folder, manifest)
    parent = NamedModel(STUDENT, manifest.size, lambda photo, at: student.stack(photo, one_hot(at)))
    rows: list[Loss] = []
    for source in sources:
        stacks, _ = true_stacks(source, scenes, size)
        everything, name = [parent, *models], source_name(source)
        how = Comparison(per_scene=inputs_per_scene)
        found = evaluate_models(everything, stacks, name, how)
        means = {row.model: row for row in found.means}
        rows += [loss_of(artifact, means) for artifact in artifacts]
    return rows


def loss_of(artifact: Artifact, means: Mapping[str, Means]) -> Loss:
    """Return what one file loses, of the means of an evaluation by model."""
    own, parent = (means[name].mean_psnr_db_off_diagonal for name in (artifact.name, STUDENT))
    about = means[artifact.name]
    if own is None or parent is None:
        raise UserError(f"{about.stacks} has no two positions to compare: name other stacks")
    loss, most = parent - own, MOST_DB.get(fewest_bits(artifact))
    status = "pass" if most is None or loss <= most else "fail"
    return Loss(
        artifact=artifact.name,
        stacks=about.stacks,
        scenes=about.scenes,
        psnr_db=round(own, 4),
        student_db=round(parent, 4),
        loss_db=round(loss, 4),
        most_db=most,
        status=status,
    )


def fewest_bits(artifact: Artifact) -> int:
    """The fewest bits of a layer, by the manifest; 32 where it says nothing of layers."""
    return min((row["bits"] for row in artifact.applied.get("layers", {}).values()), default=32)


def opened(folder: Path, artifact: Artifact, size: Size) -> Model:
    """Open a file as a model, by its runtime or by the MIL check, known by its name in the run."""
    path = check_artifact(folder, artifact)
    if get_target(artifact.target).cannot_run() is None:
        return replace(open_model(str(path)), name=artifact.name)
    from pocketfocus.export.coreml.mil.program import load_program

    program = load_program(path)

    def call(photo: Tensor, position: int) -> Tensor:
        return program.run(photo, one_hot(position))[0]

    return NamedModel(artifact.name, size, call, Analyser(artifact.name, program.run, (size,)))


@reported("losses")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the rows of a run and print its worst."""
    parser = argparse.ArgumentParser(description="What every file loses against true stacks.")
    parser.add_argument("run", type=Path, metavar="DIR", help="of `export`")
    parser.add_argument("sources", nargs="+", metavar="STACKS", help="as of `evaluate --stacks`")
    parser.add_argument("--scenes", type=int, default=9)
    parser.add_argument("--inputs-per-scene", type=int, default=3)
    parser.add_argument("--size", type=int, help="scale a folder's images to this square")
    given = parser.parse_args(arguments)
    with torch.inference_mode():
        size = (given.size, given.size) if given.size else None
        rows = losses(given.run, given.sources, given.scenes, given.inputs_per_scene, size)
        write_rows(given.run / LOSSES_FILE, rows)
    for row in rows:
        most = "" if row.most_db is None else f" of {row.most_db:g} dB: {row.status}"
        print(f"{row.artifact} on {row.stacks}: loses {row.loss_db:.3f} dB{most}")
    raise SystemExit(any(row.status == "fail" for row in rows))


if __name__ == "__main__":
    main()
