"""Drawn pictures, and that no gate loses sight of them."""

from __future__ import annotations

import numpy as np
import pytest

from pocketfocus.data.hard import CALIBRATING, HARD, hard_picture


@pytest.mark.parametrize("name", HARD)
def test_each_is_drawn_alike_every_time(name: str) -> None:
    first, again = (np.asarray(hard_picture(name)) for _ in range(2))
    assert first.shape == (320, 448, 3)
    assert (first == again).all()


def test_they_reach_the_ends_that_photos_leave_out() -> None:
    for name in CALIBRATING:
        pixels = np.asarray(hard_picture(name)).astype(int)
        assert pixels.min() <= 1 and pixels.max() == 255
        assert np.abs(np.diff(pixels, axis=1)).max() >= 250
    assert len({np.asarray(hard_picture(name)).tobytes() for name in HARD}) == len(HARD)
