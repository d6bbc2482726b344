"""The training of a prior alone: what moves, what it is told, and what it learns."""

from __future__ import annotations

import math

import pytest
import torch

from pocketfocus.distill.student.methods import get_method
from pocketfocus.distill.student.prior import PriorTrainer
from pocketfocus.distill.student.samples import Batch
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import RefocusStudent, build_student
from pocketfocus.run.errors import UserError
from tests.conftest import WITH_PRIOR

UNKNOWN, TOLD = torch.zeros(2), torch.ones(2)


@pytest.fixture
def trained(reference: ReferencePipeline) -> PriorTrainer:
    torch.manual_seed(0)
    return PriorTrainer(reference, RefocusStudent(**WITH_PRIOR))


def batch_of(nearness: float) -> Batch:
    images = torch.rand(2, 10, 3, 64, 64) * 2 - 1
    photos, positions = images[:, 1], torch.tensor([1, 7])
    return Batch(photos, positions, images, torch.full((2, 1, 16, 16), nearness))


def test_only_the_prior_and_the_layer_of_positions_move(trained: PriorTrainer) -> None:
    trained.losses(batch_of(0.5), UNKNOWN)["loss"].backward()
    moved = {n for n, p in trained.named_parameters() if p.grad is not None and p.grad.any()}
    free = {n for n, p in trained.named_parameters() if p.requires_grad}
    parts = ("student.network.prior.", "student.network.position.", "lies.")
    assert all(name.startswith(parts) for name in free)
    assert {part for part in parts if any(n.startswith(part) for n in moved)} == set(parts)


def test_a_prior_that_the_decoder_reads_stays(reference: ReferencePipeline) -> None:
    student = RefocusStudent(**WITH_PRIOR)
    assert student.network.joined is not None
    torch.nn.init.ones_(student.network.joined.weight)
    trained = PriorTrainer(reference, student)
    free = {n for n, p in trained.named_parameters() if p.requires_grad}
    assert all(name.startswith(("student.network.position.", "lies.")) for name in free)
    assert any(name.startswith("student.network.position.") for name in free)


def test_a_start_that_has_learned_keeps_what_its_blocks_know(reference: ReferencePipeline) -> None:
    """Muon at full pace made them forget: positions were off by 1.6 in place of 1.0."""
    blocks = ("student.network.prior.stem.", "student.network.prior.blocks.")
    for trained in (
        method.prepare(reference, RefocusStudent(**WITH_PRIOR))
        for method in (get_method("regression"), get_method("adversarial"))
    ):
        free = {n for n, p in trained.named_parameters() if p.requires_grad}
        assert any(name.startswith(blocks) for name in free)  # from scratch, all of it learns
        trained.keep_known()
        kept = free - {n for n, p in trained.named_parameters() if p.requires_grad}
        assert kept and all(name.startswith(blocks) for name in kept)
    alone = PriorTrainer(reference, RefocusStudent(**WITH_PRIOR))
    free = {n for n, p in alone.named_parameters() if p.requires_grad}
    alone.keep_known()
    assert {n for n, p in alone.named_parameters() if p.requires_grad} == free


def test_what_is_told_or_unknown_does_not_count(trained: PriorTrainer) -> None:
    """No cross entropy of positions that were given; no error of distances that no source tells."""
    told = trained.losses(batch_of(0.5), TOLD)
    assert told["surprise"] == told["position_error"] == 0 < told["lies_error"]
    unmapped = trained.losses(batch_of(math.nan), UNKNOWN)
    assert unmapped["lies_error"] == unmapped["defocus_error"] == 0 < unmapped["surprise"]


def test_it_learns_where_places_lie_and_the_position(trained: PriorTrainer) -> None:
    batch = batch_of(0.25)  # which is position 6
    for name, parameter in trained.student.network.position.named_parameters():
        parameter.data.zero_()
        if name == "bias":
            parameter.data[7] = 9.0  # sure of position 7
    trained.lies.weight.data.zero_()
    trained.lies.bias = torch.nn.Parameter(torch.tensor([6.0, 1.0]))
    losses = trained.losses(batch, UNKNOWN)
    assert losses["lies_error"] == 0
    assert losses["defocus_error"] == (6 + 0) / 2  # of 1-6 and 7-6, said to be 1
    assert losses["position_error"] == pytest.approx((7 - 1) / 2 / 0.7)


def test_a_student_without_one_is_refused(reference: ReferencePipeline) -> None:
    with pytest.raises(UserError, match="has no prior to train"):
        PriorTrainer(reference, build_student("micro"))
