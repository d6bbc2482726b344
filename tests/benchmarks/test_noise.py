"""What is beyond noise, held against simulations of equal things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pocketfocus.benchmarks.noise import mean_change, median_change


def share_beyond(draw: Callable[[], Any], interval: Callable[..., Any], pairs: int) -> float:
    """How many of so many pairs of equal things are said to differ."""
    ends = [interval(draw(), draw()) for _ in range(pairs)]
    assert all(ends)
    return float(np.mean([not low <= 0 <= high for low, high in ends]))


@pytest.mark.parametrize("rounds", [3, 4, 16])
@pytest.mark.parametrize("calls", [1, 12, 100])
def test_equal_files_are_said_to_differ_as_seldom_as_they_should_be(
    rounds: int, calls: int
) -> None:
    """Processes that differ by 3 %, and their calls by 5 %."""
    random = np.random.default_rng(rounds * calls)

    def measured() -> Any:
        processes = random.lognormal(2, 0.03, (rounds, 1))
        return tuple(map(tuple, processes * random.lognormal(0, 0.05, (rounds, calls))))

    assert share_beyond(measured, median_change, 400) <= 0.07


def test_equal_scores_are_said_to_differ_as_seldom_as_they_should_be() -> None:
    random = np.random.default_rng(4)
    assert share_beyond(lambda: random.normal(30, 0.1, 5), mean_change, 400) <= 0.07


def test_one_process_tells_nothing_of_others() -> None:
    """However many calls it has: what two rounds have in common is not known."""
    assert median_change(((10.0,) * 1000,) * 2, ((11.0,) * 1000,) * 2) is None
    assert median_change(((10.0, 10.0),) * 3, ((11.0,),) * 3) == pytest.approx((0.1, 0.1))


def test_rounds_that_differ_widen_the_interval() -> None:
    random = np.random.default_rng(2)
    steady = [10 + random.normal(0, 0.1, 40) for _ in range(4)]
    drifting = [each + shift for each, shift in zip(steady, (0, 2, 0, 2), strict=True)]
    widths = []
    for rounds in (steady, drifting):
        found = median_change(*[tuple(map(tuple, rounds))] * 2)
        assert found
        widths.append(found[1] - found[0])
    assert widths[1] > 5 * widths[0]


def test_scenes_are_paired() -> None:
    """Hard and easy scenes differ by far more than what changed in each."""
    before = np.random.default_rng(3).normal(30, 5, 20)
    found = mean_change([*before], [*before - 0.2])
    assert found == pytest.approx((-0.2, -0.2))
    assert mean_change([*before[:4]], [*before[:4]]) is None
