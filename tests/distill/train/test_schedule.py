import pytest

from pocketfocus.distill.train.schedule import Schedule


def test_the_rate_warms_up_stays_and_falls() -> None:
    schedule = Schedule(learning_rate=1.0, warmup_steps=100, decay=0.25)
    assert schedule.rate(0, 0.0) == pytest.approx(0.01)
    assert schedule.rate(500, 0.5) == schedule.rate(500, 0.75) == 1.0
    assert schedule.rate(500, 0.875) == pytest.approx(0.5)
    assert schedule.rate(500, 1.0) == pytest.approx(0.01)


def test_without_a_decay_it_falls_as_a_cosine() -> None:
    schedule = Schedule(learning_rate=1.0, warmup_steps=1)
    assert [schedule.rate(9, at) for at in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.505, 0.01])
