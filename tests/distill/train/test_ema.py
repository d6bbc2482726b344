"""The average of weights, against diffusers' own."""

from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from pocketfocus.distill.train.ema import EMA


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_that_of_diffusers(decay: float) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    named = dict(net.named_parameters())
    own, theirs = EMA(named, decay), EMAModel(net.parameters(), decay, update_after_step=-1)
    for step in range(1, 40):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        own.update(step)
        theirs.step(net.parameters())
    for average, expected in zip(own.average.values(), theirs.shadow_params, strict=True):
        torch.testing.assert_close(average, expected)


def test_it_is_in_the_model_for_a_while() -> None:
    """With the modes of all modules, which need not be alike, and after an error too."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    net.train()
    net[1].eval()
    ema = EMA(dict(net.named_parameters()), 0.9)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for average in ema.average.values():
        average.add_(1)
    with pytest.raises(ValueError, match="within"), ema.loaded(net):
        assert not net.training
        for name, parameter in net.named_parameters():
            assert torch.equal(parameter, before[name] + 1)
        raise ValueError("within")
    assert net.training and not net[1].training
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name])
