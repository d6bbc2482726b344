"""How refocusing flat things is counted."""

from __future__ import annotations

import math

import pytest
import torch

from pocketfocus.models.model import Model
from pocketfocus.research.flat import SIZE, Refocused, row, sky, stack_of, study, things
from pocketfocus.run.constants import FRAMES


def test_frames_on_both_sides_of_a_flat_thing_are_the_same() -> None:
    """And its own is the thing, but for what eight bits round."""
    thing = things()["a page of text"]
    stack = stack_of(thing, 4)
    assert (stack[3] - stack[5]).abs().max() <= 2 / 255 + 1e-6
    assert (
        (stack[4] + 1) * 127.5 - torch.from_numpy(thing.copy()).permute(2, 0, 1)
    ).abs().max() < 1
    assert (stack[4] - stack[8]).abs().mean() > 0.05


def test_one_that_repeats_the_photo_gains_nothing_and_one_that_knows_is_better() -> None:
    thing = things()["lights in the dark"]
    copy = Model("copy", None, lambda photo, _: photo.repeat(FRAMES, 1, 1, 1))
    repeated = study(copy, thing, places=[4])
    assert [each.position for each in repeated] == list(range(FRAMES))
    assert all(each.gain == pytest.approx(0, abs=1e-6) for each in repeated)
    truth = stack_of(thing, 4)
    knows = study(Model("knows", None, lambda photo, _: 0.9 * truth + 0.1 * photo), thing, [4])
    assert all(each.gain == pytest.approx(20, abs=0.1) for each in knows)
    assert row("lights", knows).endswith("| +20.0 | +20.0 | +20.0 | 100 % |")


def test_rows_pool_errors_and_name_the_worst_photo() -> None:
    made = [Refocused(1, 0, 0.04, 0.4), Refocused(1, 1, 0.4, 0.004), Refocused(1, 2, 0.76, 0.396)]
    assert row("any", made) == "| any | 10.0 | 11.8 | +1.8 | +20.0 | -10.0 | 67 % |"


def test_where_the_photo_is_the_truth_nothing_is_compared() -> None:
    plain = [Refocused(1, position, 0.0, 4e-4) for position in range(FRAMES)]
    assert row("plain", plain) == "| plain | exact | 40.0 | – | – | – | – |"
    assert math.isinf(-plain[0].gain)


def test_things_have_one_size() -> None:
    assert {thing.shape for thing in things().values()} == {(*SIZE, 3)}
    assert sky()[0, 0].tolist() == [110, 150, 220]
