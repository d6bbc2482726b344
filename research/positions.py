"""How well models find where a photo was focused, and what it costs where they do not.

    python -m pocketfocus.research.positions student --stacks DIR

A frame of a focal stack is a photo whose position is known. Models are asked for it, and then
refocus it from its true position, from what they found, and from those beside the true one. A last
row says what knowing the background's blur would find.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pocketfocus.benchmarks.truth import TOLERANCE, frames_by_position, source_name, true_stacks
from pocketfocus.data.datasets import SYNTHETIC
from pocketfocus.data.stacks import FocalStack
from pocketfocus.export.open import open_model
from pocketfocus.models.analyse import averaged, likely_position, median_position
from pocketfocus.models.model import Model, refocus
from pocketfocus.photos.focusmap import best_focus
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.metrics import psnr

SIDE = 256  # pixels, of frames in which the far end is looked for
FEWEST, LEAST_SPREAD = 3, 0.1  # scenes whose far ends are compared, positions
HEADER = (
    "| model | photos | off by | within one | over copy, position said | found | wrong by one |"
)


@dataclass(frozen=True)
class Found:
    """What a model found of one photo: the position it was taken at, the one found, and the gain
    over copying in dB of the other eight frames from both, and, of two the mean, from those beside
    the first."""

    position: int
    found: int
    said_db: float
    found_db: float
    beside_db: float


def study(model: Model, stacks: Iterable[FocalStack]) -> list[Found]:
    """Ask a model for the position of every frame that is at one; UserError for a model that cannot
    tell, and where no stack has two such frames."""
    if model.analyser is None:
        raise UserError(f"{model.name} does not find positions: name a student or its file")
    rows = []
    for stack in stacks:
        truth = frames_by_position(stack)
        for position, photo in truth.items() if len(truth) > 1 else ():
            analysed, _ = model.analyser.analyse_whole(photo, None, aspect=stack.aspect)
            found, _ = likely_position(analysed.analysis)
            beside = {position - 1, position + 1} & {*range(FRAMES)}
            gains = {at: _gain(model, stack, position, at) for at in {position, found, *beside}}
            by_one = float(np.mean([gains[at] for at in beside]))
            rows.append(Found(position, found, gains[position], gains[found], by_one))
    if not rows:
        raise UserError(
            f"no stack has two frames within {TOLERANCE} of a position in 0..{FRAMES - 1}: give "
            "others with --stacks"
        )
    return rows


def _gain(model: Model, stack: FocalStack, position: int, at: int) -> float:
    """How much nearer to the truth than the photo the other frames are, from position `at`."""
    truth = frames_by_position(stack)
    photo = truth.pop(position)
    made = refocus(model, photo, at, stack.name, stack.aspect)
    gains = [psnr(made[n], frame[0]) - psnr(photo[0], frame[0]) for n, frame in truth.items()]
    return float(np.mean(gains))


def row(name: str, found: Sequence[Found]) -> str:
    """A row of the table."""
    off = np.array([abs(each.found - each.position) for each in found])
    said = np.mean([each.said_db for each in found])
    auto = np.mean([each.found_db for each in found])
    beside = np.mean([each.beside_db for each in found])
    share = 100 * np.mean(off <= 1)
    return (
        f"| {name} | {len(found)} | {off.mean():.2f} | {share:.0f} % | {said:+.2f} | {auto:+.2f} | "
        f"{beside:+.2f} |"
    )


def far_end(stack: FocalStack) -> float:
    """The focal position behind which a tenth of the places of a scene are sharpest."""
    small = averaged(stack.frames, (SIDE, SIDE))
    frame = float(best_focus(small).quantile(0.9))
    return float(np.interp(frame, range(len(stack.positions)), stack.positions))


def known_far_end(ends: Sequence[float]) -> list[tuple[int, int]]:
    """The position of each photo of scenes with such far ends, and the guess of one who knows by
    how many positions the photo's focus lies in front of it, and nothing else but where the far
    ends of the other scenes lie: the median of what is as likely as these say."""
    found, at = [], torch.arange(FRAMES).double()
    for scene, end in enumerate(ends):
        others = np.delete(ends, scene)
        mean, spread = others.mean(), max(others.std(ddof=1), LEAST_SPREAD)
        for position in range(FRAMES):
            lies = at + (end - position)
            chances = (-0.5 * ((lies - mean) / spread) ** 2).softmax(0)
            found.append((position, int(median_position(chances))))
    return found


def row_of_far_ends(ends: Sequence[float]) -> str:
    """A row of the table, of three scenes or more."""
    off = np.array([abs(guess - position) for position, guess in known_far_end(ends)])
    mean, share = off.mean(), 100 * np.mean(off <= 1)
    return f"| knowing the far end's blur | {len(off)} | {mean:.2f} | {share:.0f} % | – | – | – |"


@reported("positions")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row of each model."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketfocus.research.positions", description=__doc__.splitlines()[0]
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="students and their files")
    parser.add_argument("--stacks", default=SYNTHETIC, help="a source, as `evaluate` takes them")
    parser.add_argument("--scenes", type=int, default=99, help="at most")
    options = parser.parse_args(arguments)
    models = [open_model(text) for text in options.models]
    stacks, _ = true_stacks(options.stacks, options.scenes, None)
    print(f"{source_name(options.stacks)}\n\n{HEADER}\n| --- |{' ---: |' * 6}")
    for text, model in zip(options.models, models, strict=True):
        print(row(text, study(model, stacks)), flush=True)
    ends = [far_end(stack) for stack in stacks]
    if len(ends) >= FEWEST:
        print(row_of_far_ends(ends))


if __name__ == "__main__":
    main()
