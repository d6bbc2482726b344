"""How positions that models find are counted."""

from __future__ import annotations

import pytest
import torch

from pocketfocus.data.optics import one_hot
from pocketfocus.data.stacks import FocalStack
from pocketfocus.models.analyse import Analyser
from pocketfocus.models.model import Model
from pocketfocus.models.student import build_student
from pocketfocus.research import positions
from pocketfocus.research.positions import far_end, known_far_end, row, row_of_far_ends, study
from pocketfocus.run.errors import UserError


def test_positions_found_are_counted_and_refocused_from() -> None:
    """An untrained student copies, and here always finds position 5."""
    student = build_student("micro").eval()
    with torch.no_grad():
        for parameter in student.network.position.parameters():
            parameter.zero_()
        assert student.network.position.bias is not None
        student.network.position.bias[5] = 9.0
    model = Model(
        "sure",
        None,
        lambda photo, at: student.stack(photo, one_hot(at)),
        Analyser("sure", student, multiple=8, pixels=64**2),
    )
    stack = FocalStack("one", torch.rand(9, 3, 64, 64) * 2 - 1, tuple(map(float, range(9))))
    found = study(model, [stack])
    assert [each.position for each in found] == list(range(9))
    assert {each.found for each in found} == {5}
    assert all(abs(each.said_db) < 0.01 and abs(each.found_db) < 0.01 for each in found)
    assert row("sure", found) == "| sure | 9 | 2.33 | 33 % | +0.00 | +0.00 | +0.00 |"


def test_what_a_position_wrong_by_one_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both neighbours the mean; at the ends there is one."""

    def gain(model: Model, stack: FocalStack, position: int, at: int) -> float:
        return 5.0 - (at - position) ** 2 + 0.5 * (at < position)

    monkeypatch.setattr(positions, "_gain", gain)
    student = build_student("micro").eval()
    analyser = Analyser("any", student, multiple=8, pixels=64**2)
    model = Model("any", None, lambda photo, _: photo.repeat(9, 1, 1, 1), analyser)
    stack = FocalStack("one", torch.rand(9, 3, 64, 64), tuple(map(float, range(9))))
    found = study(model, [stack])
    assert [each.said_db for each in found] == [5.0] * 9
    assert [each.beside_db for each in found] == [4.0, *[4.25] * 7, 4.5]
    assert row("any", found).endswith(" | +4.25 |")


def test_frames_of_a_stack_with_few_are_at_their_positions() -> None:
    """The far end of frames at 0, 4 and 8, too; one frame alone tells nothing."""
    student = build_student("micro").eval()
    analyser = Analyser("any", student, multiple=8, pixels=64**2)
    model = Model("any", None, lambda photo, at: student.stack(photo, one_hot(at)), analyser)
    frames = torch.zeros(3, 3, 64, 64)
    frames[2] = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    stack = FocalStack("few", frames, (0, 4, 8))
    assert [each.position for each in study(model, [stack])] == [0, 4, 8]
    assert far_end(stack) == pytest.approx(8, abs=0.5)
    between = FocalStack("between", frames[:2], (0, 4.5))
    with pytest.raises(UserError, match="no stack has two frames"):
        study(model, [between])


def test_a_model_that_finds_none_is_refused() -> None:
    with pytest.raises(UserError, match="does not find positions"):
        study(Model("copy", None, lambda photo, _: photo.repeat(9, 1, 1, 1)), [])


def test_scenes_whose_far_ends_are_alike_tell_every_position() -> None:
    assert all(guess == position for position, guess in known_far_end([6.0] * 4))
    off = [guess - position for position, guess in known_far_end([6.0, 6.0, 6.0, 4.0])]
    assert off[:9] != [0] * 9  # the fourth scene makes the others unsure
    assert off[27:] == [2] * 7 + [1, 0]  # taken for one of them, up to where there is no position
    assert row_of_far_ends([6.0, 6.1, 6.2]) == (
        "| knowing the far end's blur | 27 | 0.00 | 100 % | – | – | – |"
    )


def test_the_far_end_is_where_a_tenth_of_a_scene_lies() -> None:
    """Noise, sharp in frame 2, and in frame 6 in its last eighth."""
    sharp = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    frames = torch.zeros(9, 3, 256, 256)
    frames[2, :, :224] = sharp[:, :224]
    frames[6, :, 224:] = sharp[:, 224:]
    stack = FocalStack("two", frames, tuple(map(float, range(9))))
    assert far_end(stack) == pytest.approx(6, abs=0.5)
    frames[2], frames[6] = sharp, 0
    assert far_end(stack) == pytest.approx(2, abs=0.5)
