"""Time and memory of `refocus` against the size of a photo: one picture, in a process of its own.

    python -m pocketfocus.research.photo_sizes student 0.3 1 3 12 48

prints a row a size, and the exponents of time and memory over the larger half of them. Time is the
processor's, all threads together, and the clock's, of the best of three runs; memory is the peak of
the process, Python and PyTorch included.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from pocketfocus.benchmarks.tables import figure, markdown
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.run.errors import UserError, reported

MEGA = 1e6
RUNS = 3
POLL_S = 0.02
ASPECT = 4 / 3


@dataclass(frozen=True)
class Cost:
    """What one size costs: `megapixels`, seconds of the clock and of the processor, MiB."""

    megapixels: float
    wall_s: float
    cpu_s: float
    peak_mib: float


def photo_of(megapixels: float, path: Path) -> None:
    """Write a JPEG of that size, 4:3, of a bundled photo enlarged with some noise on it."""
    height = round((megapixels * MEGA / ASPECT) ** 0.5)
    size = (round(height * ASPECT), height)
    photo = Image.fromarray(held_out_photos()[0]).resize(size, Image.Resampling.BICUBIC)
    noise = Image.effect_noise(size, 12).convert("RGB")
    Image.blend(photo, noise, 0.06).save(path, quality=92)


def cost_of(model: str, megapixels: float, folder: Path) -> Cost:
    """Return the cost of one picture of such a photo, its fastest run; UserError when it fails."""
    photo_of(megapixels, folder / "photo.jpg")
    words = ["refocus", "photo.jpg", "--position", "4", "--focus", "1.5", "--out", "made.jpg"]
    if model != "student":
        words += ["--model", str(Path(model).absolute())]
    costs = [_one([sys.executable, "-m", "pocketfocus", *words], folder) for _ in range(RUNS)]
    best = min(costs, key=lambda cost: cost[1])
    return Cost(megapixels, best[0], best[1], max(cost[2] for cost in costs))


def _one(command: Sequence[str], folder: Path) -> tuple[float, float, float]:
    """Run a command: seconds of the clock and of the processor, and peak MiB."""
    began, peak, cpu = time.monotonic(), 0.0, 0.0
    with psutil.Popen(command, cwd=folder) as process:
        while process.poll() is None:
            try:
                with process.oneshot():
                    peak = max(peak, process.memory_info().rss)
                    spent = process.cpu_times()
                    cpu = max(cpu, spent.user + spent.system)
            except psutil.Error:
                break
            time.sleep(POLL_S)
    if process.returncode:
        raise UserError(f"{' '.join(command)} ended with {process.returncode}: run it by hand")
    return time.monotonic() - began, cpu, peak / 1024**2


def exponent(costs: Sequence[Cost], of: str) -> float:
    """Return p of cost ~ size^p, over the larger half of the sizes."""
    half = sorted(costs, key=lambda cost: cost.megapixels)[len(costs) // 2 - 1 :]
    sizes, values = [cost.megapixels for cost in half], [getattr(cost, of) for cost in half]
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def table(costs: Sequence[Cost]) -> str:
    """Return the costs as Markdown."""
    rows = [
        [
            f"{cost.megapixels:g} MP",
            figure(cost.wall_s),
            figure(cost.cpu_s),
            figure(cost.peak_mib, 0),
        ]
        for cost in costs
    ]
    powers = [figure(exponent(costs, name), 2) for name in ("wall_s", "cpu_s", "peak_mib")]
    header = ["photo", "seconds", "processor seconds", "peak MiB"]
    return markdown(header, [*rows, ["exponent", *powers]])


def megapixels(text: str) -> float:
    """Read a size; UserError for what is none."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise UserError(f"{text} is no size in megapixels: give numbers such as 0.3 and 12")
    return size


@reported("photo_sizes")
def main(arguments: Sequence[str]) -> None:
    """Print the table of a model and sizes in megapixels."""
    if len(arguments) < 3:
        raise UserError("usage: python -m pocketfocus.research.photo_sizes MODEL MP MP...")
    model, sizes = arguments[0], [*map(megapixels, arguments[1:])]
    with tempfile.TemporaryDirectory() as folder:
        print(table([cost_of(model, size, Path(folder)) for size in sizes]))


if __name__ == "__main__":
    main(sys.argv[1:])
