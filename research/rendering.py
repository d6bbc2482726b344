"""What exported files take for a photo at its own size: its analysis, and an image of it by tiles.

    python -m pocketfocus.research.rendering build/demo executorch/student-int8.pte 0.3 1 12

prints a row a size in megapixels, of that file of a student and the file that renders beside it:
milliseconds of a processor, of the best of several runs on one thread, so that what else a machine
does counts little. An image includes cutting tiles and joining them in Python.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from pocketfocus.benchmarks.rendering import POSITION
from pocketfocus.benchmarks.tables import figure, markdown
from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.export.targets import Runner, get_target
from pocketfocus.models.model import resized
from pocketfocus.models.render import Analysed, Feeds, Place, aperture_of, cut, focus_weights
from pocketfocus.models.student import Analysis
from pocketfocus.quantize.calibration import fitted
from pocketfocus.run.constants import FRAMES, Size
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.manifest import Artifact, check_artifact, load_manifest

RUNS, THREADS = 20, 1
MEGA, ASPECT = 1e6, 4 / 3
SETTING = (3.5, 1.0)  # focus and aperture
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a photo costs: its `megapixels` and tiles; milliseconds of its analysis, of the calls
    that make one image, and of that image with cutting and joining."""

    megapixels: float
    tiles: int
    analysis_ms: float
    calls_ms: float
    image_ms: float


def image(run: Runner, analysed: Analysed, photo: Tensor) -> tuple[Tensor, float]:
    """Return an image of a photo [1,3,H,W], by tiles, and the milliseconds of the calls alone."""
    made, spent = torch.empty_like(photo), 0.0
    for place, feeds in tiles_of(analysed, photo):
        (tile,), ms = timed(partial(run, *feeds))
        spent += ms
        rows, columns = (part.stop - part.start for part in place)
        made[(..., *place)] = tile[..., :rows, :columns]
    return made, spent


def tiles_of(analysed: Analysed, photo: Tensor) -> Iterator[tuple[Place, Feeds]]:
    """Return the tiles of a photo at one focus and aperture."""
    focus, aperture = SETTING
    return cut(analysed, photo, focus_weights(focus), aperture_of(aperture))


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return a call's result and the milliseconds that it took of a processor."""
    began = time.process_time()
    made = call()
    return made, 1000 * (time.process_time() - began)


def cost_of(files: tuple[Runner, Runner], size: Size, megapixels: float) -> Cost:
    """Return the cost of a bundled photo, enlarged, with the file of a student for photos of
    `size` and the one that renders."""
    analyse, render = files
    height = round((megapixels * MEGA / ASPECT) ** 0.5)
    photo = fitted(Image.fromarray(held_out_photos()[-1]), (height, round(height * ASPECT)))
    small = resized(photo, size)
    made = [timed(partial(analyse, small, one_hot(POSITION))) for _ in range(RUNS)]
    analysed = Analysed(small, Analysis(*made[0][0]), size)
    images = [timed(partial(image, render, analysed, photo)) for _ in range(RUNS)]
    return Cost(
        megapixels,
        sum(1 for _ in tiles_of(analysed, photo)),
        min(ms for _, ms in made),
        min(calls for (_, calls), _ in images),
        min(ms for _, ms in images),
    )


def table(costs: Sequence[Cost]) -> str:
    """Return the costs as Markdown."""
    header = ["photo", "tiles", "analysis ms", "an image, calls ms", "an image ms"]
    rows = [
        [
            f"{cost.megapixels:g} MP",
            str(cost.tiles),
            figure(cost.analysis_ms),
            figure(cost.calls_ms),
            figure(cost.image_ms),
            figure(cost.analysis_ms + FRAMES * cost.image_ms),
        ]
        for cost in costs
    ]
    return markdown([*header, "analysis and nine images ms"], rows)


def runners(folder: Path, name: str) -> tuple[Runner, Runner]:
    """Open a file of a run's student, and the file that renders of the same target; UserError
    where there is none."""
    manifest = load_manifest(folder)
    student = {each.name: each for each in manifest.artifacts}.get(name)
    rendering = manifest.render.files if manifest.render else ()
    render = next((each for each in rendering if student and each.target == student.target), None)
    if student is None or render is None:
        known = ", ".join(each.name for each in manifest.files)
        raise UserError(f"{folder} holds no {name} with what renders beside it, but {known}")
    return _open(folder, student), _open(folder, render)


def _open(folder: Path, artifact: Artifact) -> Runner:
    return get_target(artifact.target).open(check_artifact(folder, artifact), THREADS)


@reported("rendering")
def main(arguments: Sequence[str]) -> None:
    """Print the table of a run, a file of it, and sizes in megapixels."""
    if len(arguments) < 3:
        raise SystemExit("usage: python -m pocketfocus.research.rendering RUN FILE MP...")
    folder, name, *sizes = arguments
    files, size = runners(Path(folder), name), load_manifest(Path(folder)).size
    torch.set_num_threads(1)  # what is left to PyTorch here is copies
    print(table([cost_of(files, size, float(each)) for each in sizes]))


if __name__ == "__main__":
    main(sys.argv[1:])
