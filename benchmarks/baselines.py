"""What a refocusing model has to beat: repeating the photo, and one fixed filter per position pair.

The blur table is fitted on training scenes and shipped. To fit it anew:

    python -m pocketfocus.benchmarks.baselines --scenes 40

Legend: P 9 focal positions, K candidate filters, H, W.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import gaussian
from torch import Tensor

import pocketfocus
from pocketfocus.data.scenes import TRAIN_PHOTOS, train_photos
from pocketfocus.data.stacks import FocalStack, RenderedScenes
from pocketfocus.models.model import Model
from pocketfocus.run.constants import FRAMES, POSITIONS
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import read_json, write_json
from pocketfocus.run.progress import track

TABLE_FILE = Path(pocketfocus.__file__).parent / "weights" / "blur_baseline.json"
COPY = "copy"
FIT_SCENES, FIT_SEED = 40, 0
FIT_WIDTH = 256  # the width in pixels that `sigma_px` refers to


@dataclass(frozen=True)
class Filter:
    """A Gaussian blur of `sigma_px`, or with `amount` > 0 the unsharp mask of that blur.

    Both 0: the photo as is. sigma_px holds for photos 256 pixels wide and grows in proportion, as
    circles of confusion do. ValueError when a value is negative or not finite, or when an amount
    has no sigma.
    """

    sigma_px: float = 0.0
    amount: float = 0.0

    def __post_init__(self) -> None:
        values = (self.sigma_px, self.amount)
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"sigma_px and amount are {values}, not finite and at least 0")
        if self.amount and not self.sigma_px:
            raise ValueError(f"amount is {self.amount}, but sigma_px is 0")

    def __call__(self, photo: Tensor) -> Tensor:
        """Filter a photo [1, 3, H, W] in [-1, 1], edges repeated, to the same shape and range."""
        return self.of(photo, _blurred(photo, self.sigma_px)) if self.sigma_px else photo

    def of(self, photo: Tensor, blurred: Tensor) -> Tensor:
        """Return the result, from the photo and its blur by `sigma_px` (the photo itself for 0)."""
        if self.amount:
            return (photo + self.amount * (photo - blurred)).clamp(-1, 1)
        return blurred


Table = Mapping[tuple[int, int], Filter]  # (input position, output position) to its filter

SIGMAS_PX = tuple(round(float(s), 3) for s in np.geomspace(0.3, 8.0, 24))
MASK_SIGMAS_PX = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
AMOUNTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0)
CANDIDATES = (
    Filter(),
    *(Filter(sigma_px=sigma) for sigma in SIGMAS_PX),
    *(Filter(sigma, amount) for sigma in MASK_SIGMAS_PX for amount in AMOUNTS),
)


def _blurred(photo: Tensor, sigma_px: float) -> Tensor:
    sigma = sigma_px * photo.shape[-1] / FIT_WIDTH
    sigmas = (0, 0, sigma, sigma)
    pixels = gaussian(photo.numpy(), sigmas, mode="nearest", preserve_range=True)  # type: ignore[no-untyped-call]
    return torch.from_numpy(np.asarray(pixels))


COPIES = Model(COPY, None, lambda photo, _: photo.expand(FRAMES, -1, -1, -1), multiple=1)
"""The photo nine times."""


def blur(table: Table) -> Model:
    """Return the model that applies the fitted filter of every output position to the photo."""

    def call(photo: Tensor, position: int) -> Tensor:
        return torch.cat([table[position, output](photo) for output in range(FRAMES)])

    return Model("blur", None, call, multiple=1)


def baselines() -> tuple[Model, Model]:
    """Return both baselines, `blur` with the shipped table."""
    return COPIES, blur(load_table())


def fit_blur(
    stacks: Iterable[FocalStack], candidates: Sequence[Filter] = CANDIDATES
) -> dict[tuple[int, int], Filter]:
    """Fit for every pair of positions the candidate of least mean squared error over all stacks.

    Among equals the earliest wins, so put the identity first. Positions must be the nine whole
    ones; ValueError when a stack has others or there is none.
    """
    total: NDArray[np.float64] = np.zeros((FRAMES, FRAMES, len(candidates)))
    seen = 0
    for stack in stacks:
        if stack.positions != POSITIONS:
            raise ValueError(f"{stack.name} has positions {stack.positions}, not 0 … {FRAMES - 1}")
        total += [_errors(stack.frames, position, candidates) for position in range(FRAMES)]
        seen += 1
    if not seen:
        raise ValueError("no stack to fit on")
    best = total.argmin(axis=-1)
    pairs = [(i, o) for i in range(FRAMES) for o in range(FRAMES)]
    return {pair: candidates[best[pair]] for pair in pairs}


def _errors(frames: Tensor, position: int, candidates: Sequence[Filter]) -> NDArray[np.float64]:
    """Return the mean squared errors [P, K] of the filtered frame at `position` to each [P, 3, H,
    W].

    |c - f|² = |c|² - 2 c·f + |f|²; c and f are taken relative to the photo, so that no large terms
    cancel. Each blur is made once, for all the amounts that use it.
    """
    photo = frames[position : position + 1]
    blurs = {sigma: _blurred(photo, sigma) for sigma in {c.sigma_px for c in candidates} if sigma}
    f = (frames - photo).flatten(1).double()
    ff = (f * f).sum(1)
    columns = []
    for candidate in candidates:
        made = candidate.of(photo, blurs.get(candidate.sigma_px, photo))
        c = (made - photo).flatten().double()
        columns.append((c @ c - 2 * f @ c + ff) / len(c))
    return np.asarray(torch.stack(columns, dim=-1).numpy())


def save_table(path: Path, table: Table, made: Mapping[str, object]) -> None:
    """Write a table, with what it was made from, as JSON."""
    rows = [
        {"input_position": i, "output_position": o, **asdict(found)}
        for (i, o), found in sorted(table.items())
    ]
    write_json(path, {"made": dict(made), "rows": rows})


def load_table(path: Path = TABLE_FILE) -> dict[tuple[int, int], Filter]:
    """Read a table; UserError when it is missing, broken or has not one filter for each pair."""
    try:
        table = {
            (int(row["input_position"]), int(row["output_position"])): Filter(
                float(row["sigma_px"]), float(row["amount"])
            )
            for row in read_json(path)["rows"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no blur table ({error!r}): fit it anew, {_HOW}") from error
    if set(table) != {(i, o) for i in range(FRAMES) for o in range(FRAMES)}:
        raise UserError(
            f"{path} has {len(table)} pairs of positions, {FRAMES**2} are needed: "
            f"fit it anew, {_HOW}"
        )
    return table


_HOW = "python -m pocketfocus.benchmarks.baselines"


@reported("baselines")
def main(arguments: Sequence[str] | None = None) -> None:
    """Render training scenes, fit the table and write it."""
    parser = argparse.ArgumentParser(prog=_HOW, description="Fit the blur baseline.")
    parser.add_argument("--scenes", type=int, default=FIT_SCENES, help="training scenes to render")
    parser.add_argument("--size", type=int, default=FIT_WIDTH, help="of the square scenes")
    parser.add_argument("--out", type=Path, default=TABLE_FILE, help="the JSON file to write")
    options = parser.parse_args(arguments)
    if options.scenes < 1 or options.size < 16:
        parser.error("--scenes must be at least 1 and --size at least 16")
    size = (options.size, options.size)
    seeds = range(FIT_SEED, FIT_SEED + options.scenes)
    stacks = RenderedScenes(seeds, size, train_photos())
    table = fit_blur(track(stacks, "fitting on training scenes", options.scenes))
    made = {
        "command": f"{_HOW} --scenes {options.scenes} --size {options.size}",
        "seeds": [seeds[0], seeds[-1]],
        "photos": list(TRAIN_PHOTOS),
        "sigmas_px": list(SIGMAS_PX),
        "mask_sigmas_px": list(MASK_SIGMAS_PX),
        "amounts": list(AMOUNTS),
        "width_px": FIT_WIDTH,
    }
    save_table(options.out, table, made)


if __name__ == "__main__":
    main()
