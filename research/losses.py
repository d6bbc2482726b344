"""What quantization costs against true focal stacks: every file's PSNR beside the fp32 student's.

    python -m pocketfocus.research.losses DIR synthetic learn2refocus-sample --scenes 9

writes DIR/losses.json, a row a file and source of stacks, which `research.quantization` prints.
Files of Core ML are executed by the MIL check where Core ML is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from pocketfocus.benchmarks.checks import load_parent
from pocketfocus.benchmarks.evaluate import Refocuser, evaluate_models, validation_stacks
from pocketfocus.benchmarks.gates import is_written
from pocketfocus.data.datasets import SYNTHETIC, TEST, Request, check_source, open_source
from pocketfocus.data.optics import one_hot
from pocketfocus.data.stacks import FocalStack
from pocketfocus.export.open import Model, open_model
from pocketfocus.export.targets import get_target
from pocketfocus.run.errors import reported
from pocketfocus.run.files import Row, write_rows
from pocketfocus.run.manifest import Artifact, check_artifact, load_manifest

LOSSES_FILE = "losses.json"
STUDENT = "student"
MOST_DB = {8: 0.1, 4: 0.3}
"""What a file may lose against true stacks, by the fewest bits of its layers."""
FIGURE = "mean_psnr_db_off_diagonal"


def losses(
    folder: Path,
    sources: Sequence[str],
    scenes: int,
    inputs_per_scene: int = 3,
    size: int | None = None,
) -> list[Row]:
    """Score every file of a run and its student on the same true stacks.

    A row is `{artifact, stacks, scenes, psnr_db, student_db, loss_db, most_db, status}`, PSNR off
    the diagonal; `most_db` is None, and the status `pass`, where no limit is set. UserError for a
    file that is damaged or cannot be executed here, and for unknown sources.
    """
    for source in sources:
        check_source(source)
    manifest = load_manifest(folder)
    artifacts = [a for a in manifest.artifacts if is_written(a)]
    models = [opened(folder, artifact, manifest.size) for artifact in artifacts]
    student = load_parent(folder, manifest)
    parent = Model(STUDENT, manifest.size, lambda photo, at: student(photo, one_hot(at)))
    rows: list[Row] = []
    for source in sources:
        name = Path(source).resolve().name if Path(source).is_dir() else source
        truth = list(true_stacks(source, scenes, size))
        means = {
            row["model"]: row
            for row in evaluate_models([parent, *models], truth, name, per_scene=inputs_per_scene)
            if FIGURE in row
        }
        rows += [loss_row(artifact, means) for artifact in artifacts]
    return rows


def loss_row(artifact: Artifact, means: dict[str, Row]) -> Row:
    """What one file loses, of the mean rows of an evaluation by model."""
    own, parent = means[artifact.name], means[STUDENT]
    loss, most = parent[FIGURE] - own[FIGURE], MOST_DB.get(fewest_bits(artifact))
    return {
        "artifact": artifact.name,
        "stacks": own["stacks"],
        "scenes": own["scenes"],
        "psnr_db": round(own[FIGURE], 4),
        "student_db": round(parent[FIGURE], 4),
        "loss_db": round(loss, 4),
        "most_db": most,
        "status": "pass" if most is None or loss <= most else "fail",
    }


def fewest_bits(artifact: Artifact) -> int:
    """Of a file's layers, by what its manifest says is in it; 32 where it says nothing."""
    return min((row["bits"] for row in artifact.taken.get("layers", {}).values()), default=32)


def opened(folder: Path, artifact: Artifact, size: tuple[int, int]) -> Refocuser:
    """A file as a model, by its runtime or by the MIL check, known by its name in the run."""
    path = check_artifact(folder, artifact)
    if artifact.target != "coreml" or get_target(artifact.target).cannot_run() is None:
        return replace(open_model(str(path)), name=artifact.name)
    from pocketfocus.export.coreml.mil.program import load_program

    program = load_program(path)

    def call(photo: Tensor, position: int) -> Tensor:
        (stack,) = program({"photo": photo, "position": one_hot(position)}).values()
        return stack

    return Model(artifact.name, size, call)


def true_stacks(source: str, scenes: int, size: int | None) -> Iterable[FocalStack]:
    """At most `scenes` test stacks of a source, 256 by 256 unless `size` says other."""
    if source == SYNTHETIC:
        yield from validation_stacks(scenes)
        return
    shape = (size, size) if size else None
    found = open_source(source, Request(scenes, shape, TEST, crop=False))
    stacks = (found.load(index) for index in range(len(found.names)))
    yield from islice((stack for stack in stacks if stack is not None), scenes)


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
        rows = losses(given.run, given.sources, given.scenes, given.inputs_per_scene, given.size)
        write_rows(given.run / LOSSES_FILE, rows)
    for row in rows:
        most = "" if row["most_db"] is None else f" of {row['most_db']:g} dB: {row['status']}"
        print(f"{row['artifact']} on {row['stacks']}: loses {row['loss_db']:.3f} dB{most}")
    raise SystemExit(any(row["status"] == "fail" for row in rows))


if __name__ == "__main__":
    main()
