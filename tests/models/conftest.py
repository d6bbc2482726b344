"""Fixtures of the models' tests."""

from __future__ import annotations

import pytest
import torch

from pocketfocus.models.student import RefocusStudent


@pytest.fixture
def prior_student() -> RefocusStudent:
    """A small student with a prior, whose outputs are not zero."""
    torch.manual_seed(0)
    sizes = {"channels": (8, 8, 16), "encoder": (1, 1, 1), "decoder": (1, 1), "head": 16}
    made = RefocusStudent(**sizes, bands=3, prior=8, size=(64, 96)).eval()
    torch.nn.init.normal_(made.network.outputs.weight, std=0.05)
    return made
