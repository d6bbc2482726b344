"""The GAN: each side learns from its own term."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pocketfocus.distill.student.adversarial import Adversarial, pseudo_huber
from pocketfocus.distill.student.samples import true_batch
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import load_student
from pocketfocus.run.constants import FRAMES
from tests.distill.conftest import cached


def test_each_term_of_the_gan_trains_its_own_side(
    either: ReferencePipeline, small_student: Path, noise: np.ndarray
) -> None:
    trained = Adversarial(either, load_student(small_student))
    batch = true_batch([cached(noise)], 2, 64, torch.Generator().manual_seed(0)).floats()
    made = trained.made(batch.photos, batch.places).images[:, :FRAMES]
    fool, judge = trained.judged(made, batch)
    parts = trained.student, trained.heads
    student, heads = ([p for p in part.parameters() if p.requires_grad] for part in parts)
    for term, other in ((fool, heads), (judge, student)):
        found = torch.autograd.grad(term, other, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in found)
    fools = torch.autograd.grad(fool, student, retain_graph=True, allow_unused=True)
    assert sum(float(g.abs().sum()) for g in fools if g is not None) > 0
    assert all(g is not None for g in torch.autograd.grad(judge, heads))
    assert not any(p.requires_grad for p in trained.vae.parameters())


def test_hinge_of_equal_stacks_is_at_least_two(
    either: ReferencePipeline, small_student: Path, noise: np.ndarray
) -> None:
    """relu(1 - x) + relu(1 + x) >= 2: nothing tells one from the other."""
    trained = Adversarial(either, load_student(small_student))
    batch = true_batch([cached(noise)], 1, 64, torch.Generator().manual_seed(0)).floats()
    _, judge = trained.judged(batch.stacks, batch)
    assert float(judge.detach()) >= 2 - 1e-5


def test_every_layer_of_the_student_is_in_the_graph(
    either: ReferencePipeline, small_student: Path, noise: np.ndarray
) -> None:
    """Several processes would wait for the gradient of one that is not."""
    trained = Adversarial(either, load_student(small_student))
    batch = true_batch([cached(noise)], 1, 64, torch.Generator().manual_seed(0)).floats()
    for pool in (1, 4):
        trained.zero_grad(set_to_none=True)
        trained.losses(batch, pool=pool)["loss"].backward()
        learns = {n: p for n, p in trained.student.named_parameters() if p.requires_grad}
        assert [name for name, parameter in learns.items() if parameter.grad is None] == []
        fixed = {name for name, _ in trained.student.named_parameters()} - set(learns)
        assert fixed == {"network.detail.weight", "network.detail.bias"}


def test_pseudo_huber_is_square_near_zero_and_size_far_off() -> None:
    assert float(pseudo_huber(torch.tensor(1e-2), 0.1)) == pytest.approx(1e-4 / 0.2, rel=1e-2)
    assert float(pseudo_huber(torch.tensor(100.0), 0.1)) == pytest.approx(99.9, rel=1e-3)
