"""Is a change beyond noise: Student's t over rounds, each a fresh process, and over scenes.

A 95 % interval is of the change itself; one that holds 0 is noise. Calls of one process have more
in common than those of two, so that a round counts once, by its median, however many calls it has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from pocketfocus.benchmarks.samples import Times

CONFIDENCE = 0.95
FEWEST_ROUNDS, FEWEST_SCENES = 3, 5  # below which nothing is told, for the spread is not known

Interval = tuple[float, float]
Values = NDArray[np.float64]


def median_change(before: Times, after: Times) -> Interval | None:
    """Return the interval of the relative change of the median call; None for too few rounds.

    By Welch's test on the logarithms of the rounds' medians (Biometrika 34, 1947), since one side
    may have been measured on a busier machine.
    """
    sides = [np.log([np.median(one) for one in side if one]) for side in (before, after)]
    if any(len(side) < FEWEST_ROUNDS for side in sides):
        return None
    errors = np.array([side.var(ddof=1) / len(side) for side in sides])
    parts = errors**2 / [len(side) - 1 for side in sides]
    freedom = errors.sum() ** 2 / parts.sum() if parts.sum() else 1.0
    low, high = _interval(sides[1].mean() - sides[0].mean(), errors.sum() ** 0.5, freedom)
    return float(np.expm1(low)), float(np.expm1(high))


def mean_change(before: Sequence[float], after: Sequence[float]) -> Interval | None:
    """Return the interval of the mean difference of pairs, one a scene; None for too few."""
    count = len(before)
    if count < FEWEST_SCENES:
        return None
    differences: Values = np.subtract(after, before)
    return _interval(differences.mean(), differences.std(ddof=1) / count**0.5, count - 1)


def _interval(middle: float, error: float, freedom: float) -> Interval:
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return float(middle - reach), float(middle + reach)
