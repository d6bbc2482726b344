import pytest

from pocketfocus.distill.student.options import Distillation
from pocketfocus.run.errors import UserError


def test_an_optimizer_brings_its_own_pace() -> None:
    usual, fast = Distillation().schedule, Distillation(optimizer="muon").schedule
    anew = Distillation(from_scratch=True).schedule
    assert usual.optimizer == "adamw" and fast.optimizer == anew.optimizer == "muon"
    assert fast.learning_rate > 10 * usual.learning_rate
    assert Distillation(optimizer="muon", learning_rate=2e-4).schedule.learning_rate == 2e-4
    gentle = Distillation(from_scratch=True, optimizer="adamw").schedule
    assert gentle.config == usual.config
    same = Distillation(from_scratch=True, optimizer="muon").schedule
    assert same.config == anew.config
    with pytest.raises(UserError, match="unknown optimizer sgd: choose one of adamw, muon"):
        _ = Distillation(optimizer="sgd").schedule


def test_what_has_learned_goes_on_at_a_rate_that_falls_from_the_first_step() -> None:
    again = Distillation(optimizer="muon").schedule
    anew = Distillation(from_scratch=True).schedule
    warmed = again.warmup_steps
    assert again.rate(warmed, 0.5) == pytest.approx(again.learning_rate / 2)
    assert anew.rate(warmed, 0.5) == anew.learning_rate > again.learning_rate
