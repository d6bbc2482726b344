import pytest

from pocketfocus.distill.student.options import Distillation
from pocketfocus.run.errors import UserError


def test_an_optimizer_brings_its_own_pace() -> None:
    usual, fast = Distillation().schedule, Distillation(optimizer="muon").schedule
    anew = Distillation(from_scratch=True).schedule
    assert usual.optimizer == "adamw" and fast.config == anew.config
    assert fast.learning_rate > 10 * usual.learning_rate
    assert Distillation(optimizer="muon", learning_rate=8e-4).schedule.learning_rate == 8e-4
    gentle = Distillation(from_scratch=True, optimizer="adamw").schedule
    assert gentle.config == usual.config
    with pytest.raises(UserError, match="unknown optimizer sgd: choose one of adamw, muon"):
        _ = Distillation(optimizer="sgd").schedule
