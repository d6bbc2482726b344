"""The metrics that look through networks, by what a folder has weights for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from pocketfocus.benchmarks.frechet import Seen
from pocketfocus.benchmarks.inception import features, load_inception
from pocketfocus.benchmarks.metric_weights import INCEPTION_FILE, VGG16_FILE, weights_in
from pocketfocus.benchmarks.perceptual import Perceptual


class Networks(NamedTuple):
    """LPIPS with DISTS, and what FID is computed of; None where their weights are not there."""

    perceptual: Perceptual | None = None
    seen: Seen | None = None


def open_networks(folder: Path | None, kept: Path | None = None) -> Networks:
    """Return what a folder has weights for, nothing of none.

    kept: a folder for what Inception sees, until an evaluation is finished.

    UserError for a folder without any, and for files that are damaged or of other networks.
    """
    if folder is None:
        return Networks()
    weights = weights_in(folder)
    vgg16, inception = weights.get(VGG16_FILE), weights.get(INCEPTION_FILE)
    return Networks(
        Perceptual(vgg16) if vgg16 else None,
        Seen(partial(features, load_inception(inception)), kept) if inception else None,
    )
