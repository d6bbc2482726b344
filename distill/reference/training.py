"""What `train-reference` does: a training as data, from its options to its files."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from pocketfocus.data.datasets import SYNTHETIC, Request, open_source
from pocketfocus.data.stacks import cache_sources
from pocketfocus.distill.reference.denoiser import CONTENT
from pocketfocus.distill.reference.finetune import check_request, fine_tune, load_start
from pocketfocus.distill.reference.phases import (
    AUTOENCODER_CROPS,
    DENOISER_CROPS,
    Phase,
    check_run,
    train_reference,
)
from pocketfocus.distill.reference.recipes import LEARNING_RATE, OWN, Recipe, get_recipe
from pocketfocus.distill.train.crops import Crops, Pixels, check_size
from pocketfocus.distill.train.distributed import (
    alone_together,
    main_process_first,
    process_state,
)
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import key_of, sha256

DEFAULT_MINUTES = 120.0
# The autoencoder starts at principal components and has little left to learn.
AUTOENCODER_SHARE = 0.03
AUTOENCODER_RATE, DENOISER_RATE = 1e-3, 1.5e-3
PATCH, UNET_PATCH = 8, 16  # pixels a side: the small reference's sides and crops are multiples
DENOISER = Schedule(optimizer="muon", clip_norm=4.0, decay=0.5, ema_decay=0.998)


@dataclass(frozen=True)
class Training:
    """The options of `train-reference`; `size` (H, W) in pixels, None for that of the recipe,
    `photos` are textures of the scenes.

    `stacks` are sources by name (`datasets`); of each that is rendered there are `scenes`.
    `init` None trains the small reference, otherwise `svd`, `learn2refocus`, a folder or a Hub id
    is fine-tuned by a `recipe`, the part of its UNet that `train` names. The budget ends at
    `minutes` or `steps`, whichever first; None and None are 120 minutes.
    """

    minutes: float | None = None
    steps: int | None = None
    init: str | None = None
    train: str = "temporal"
    recipe: str = OWN.name
    stacks: tuple[str, ...] = (SYNTHETIC,)
    scenes: int = 400
    size: Size | None = None
    photos: tuple[Path, ...] = ()
    batch: int | None = None
    accumulate: int = 1
    learning_rate: float | None = None
    seed: int = 0

    @property
    def config(self) -> dict[str, object]:
        """What a checkpoint has to agree with, before any stack is rendered."""
        return {
            "init": self.init,
            "stacks": list(self.stacks),
            "scenes": self.scenes,
            "size": self.sides[0] if self.sides[0] == self.sides[1] else list(self.sides),
            "photos": key_of(photos=[sha256(path) for path in self.photos]),
            "batch": self.batch,
            "denoiser rate": self.rate,
            "seed": self.seed,
        }

    @property
    def sides(self) -> Size:
        """The size of the stacks (H, W)."""
        return self.size or self.way.size

    @property
    def way(self) -> Recipe:
        """The recipe of a fine-tuning; UserError for an unknown one."""
        return get_recipe(self.recipe)

    @property
    def rate(self) -> float:
        """The peak learning rate, of the denoiser; of a recipe where it is for a sample, times the
        samples of a step."""
        rate = DENOISER_RATE if self.init is None else LEARNING_RATE
        samples = 1
        if self.init is not None and self.way.scaled:
            samples = (self.batch or 1) * self.accumulate * process_state().num_processes
        return samples * (rate if self.learning_rate is None else self.learning_rate)

    def schedule(
        self, share: float = 1.0, rate: float | None = None, small: Schedule | None = None
    ) -> Schedule:
        """Make a schedule with a share of the budget, of the small reference like `small`;
        UserError for a budget or rate of nothing."""
        rate = rate or self.rate
        minutes = self.minutes
        if minutes is None:
            minutes = DEFAULT_MINUTES if self.steps is None else math.inf
        if minutes <= 0:
            raise UserError(f"{minutes:g} minutes train nothing: give more with --minutes")
        if not 0 < rate < 1:
            raise UserError(f"--learning-rate {rate} is not between 0 and 1: try {DENOISER_RATE}")
        own = small or Schedule() if self.init is None else self.way.schedule
        budget = replace(
            own, minutes=minutes * share, learning_rate=rate, accumulate=self.accumulate
        )
        if self.steps is None:
            return budget
        return replace(budget, steps=max(1, round(self.steps * share)))


def denoiser_crops(size: Size, batch: int | None = None) -> tuple[Crops, ...]:
    """Return the crops that a small reference's denoiser takes of stacks of a size.

    UserError for a size that holds no crops, or that is no whole number of patches.
    """
    for side in size:
        if side % PATCH:
            below = side // PATCH * PATCH
            raise UserError(
                f"a small reference takes sides in multiples of {PATCH}, not {side}: take --size "
                f"{below} or {below + PATCH}"
            )
    held = min(size) // UNET_PATCH * UNET_PATCH
    crops = tuple(
        replace(part, batch=batch or part.batch, size=min(part.size, held))
        for part in DENOISER_CROPS
    )
    check_size(size, (*AUTOENCODER_CROPS, *crops))
    return crops


def run_training(training: Training, out: Path) -> None:
    """Train, or go on, and write the reference to `out`, in which nobody else may train.

    Raises UserError, before anything is rendered, for options that do not fit each other, a start
    that cannot be loaded, and checkpoints in `out` of other options.
    """
    with alone_together(out, "train"):
        _run(training, out)


def _run(training: Training, out: Path) -> None:
    schedule, seed, config = training.schedule(), training.seed, training.config
    size = training.sides
    request = Request(training.scenes, size, photos=training.photos, register=True, seed=seed)
    sources = [open_source(spec, request) for spec in training.stacks]
    config = {**config, CONTENT: key_of(sources=[source.key for source in sources])}
    check_run(out, config)

    def stacks() -> Pixels:
        with main_process_first():
            return cache_sources(out / "stacks", sources, size).pixels

    if training.init is not None:
        check_request(size, training.train)
        start = load_start(training.init)
        whole = (Crops(1.0, training.batch or 1, min(size)),)
        phase = Phase(schedule, whole, seed, config)
        fine_tune(start, stacks(), out, phase, training.train, training.way)
        return
    crops = denoiser_crops(size, training.batch)
    first = training.schedule(AUTOENCODER_SHARE, AUTOENCODER_RATE)
    autoencoder = Phase(first, AUTOENCODER_CROPS, seed, config)
    second = training.schedule(1 - AUTOENCODER_SHARE, small=DENOISER)
    denoiser = Phase(second, crops, seed, config)
    train_reference(stacks(), out, autoencoder, denoiser)
