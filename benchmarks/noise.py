"""Is a change beyond noise: percentile bootstraps over rounds, their calls, and scenes.

A 95 % interval is of the change itself; one that holds 0 is noise. Resampling is seeded, so that
the same files always give the same verdict.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pocketfocus.benchmarks.samples import Times

RESAMPLED = 2000
CONFIDENCE = 95.0  # %
FEWEST_CALLS, FEWEST_SCENES = 10, 5  # below which a bootstrap tells nothing

Interval = tuple[float, float]
Values = NDArray[np.float64]


def median_change(before: Times, after: Times) -> Interval | None:
    """Return the interval of the relative change of the median call; None for too few calls.

    Rounds are drawn, then calls of each drawn round, so that what differs between processes counts
    as much as what differs between calls.
    """
    if any(sum(map(len, side)) < FEWEST_CALLS for side in (before, after)):
        return None
    generator = np.random.default_rng(0)
    medians = [_medians(side, generator) for side in (before, after)]
    return _interval(medians[1] / medians[0] - 1)


def mean_change(before: Sequence[float], after: Sequence[float]) -> Interval | None:
    """Return the interval of the mean difference of pairs, one a scene; None for too few."""
    if len(before) < FEWEST_SCENES:
        return None
    differences = np.subtract(after, before)
    drawn = np.random.default_rng(0).choice(differences, (RESAMPLED, len(differences)))
    return _interval(drawn.mean(1))


def _medians(times: Times, generator: np.random.Generator) -> Values:
    rounds = [np.array(one) for one in times if one]
    drawn = generator.integers(len(rounds), size=(RESAMPLED, len(rounds)))

    def calls(of: Values) -> Values:
        return of[generator.integers(len(of), size=len(of))]  # as `choice`, in half of the time

    return np.array([np.median(np.concatenate([calls(rounds[n]) for n in line])) for line in drawn])


def _interval(values: Values) -> Interval:
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)
