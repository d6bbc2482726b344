"""The losses of one-step regression, against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pocketfocus.distill.student import regression
from pocketfocus.distill.student.regression import (
    Made,
    Regression,
    compared,
    log_error_where_sharper,
)
from pocketfocus.distill.student.samples import Batch
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import build_student

GIVEN = torch.ones(2)  # both positions


def batch_of(images: Tensor, positions: list[int], nearness: float = np.nan) -> Batch:
    """Photos as their positions say, all at one distance, if it is known."""
    at = torch.tensor(positions)
    cells = (side // 4 for side in images.shape[-2:])
    return Batch(images[range(len(at)), at], at, images, torch.full((len(at), 1, *cells), nearness))


def made_of(batch: Batch, images: Tensor) -> Made:
    """These images, the true distances, and no idea of positions."""
    return Made(images, batch.nearness.nan_to_num(), torch.full((len(images), 9), -np.log(9.0)))


def test_regression_is_zero_only_for_the_stack_itself(reference: ReferencePipeline) -> None:
    student = build_student("micro")
    copies = (torch.rand(2, 1, 3, 32, 32) * 1.8 - 0.9).expand(2, 10, 3, 32, 32)
    trained, batch = Regression(reference, student), batch_of(copies, [0, 8])
    same = trained.losses(batch, GIVEN)  # untrained: copies its photo
    other = trained.losses(
        Batch(batch.photos, batch.positions, copies.roll(1, -1), batch[3]), GIVEN
    )
    assert same["loss"] == 0 < other["loss"]


@pytest.mark.parametrize("nearness", [np.nan, 0.5])
def test_the_loss_has_an_edge_and_an_adjacent_frame_term(
    nearness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed image by image in numpy; the frame of the photo's own position is right, and counts
    only beside its neighbours, the sharp picture only where it is known."""
    monkeypatch.setattr(regression, "SHARPER_WEIGHT", 0)
    generator = np.random.default_rng(0)
    made, images = generator.uniform(-1, 1, (2, 2, 10, 3, 8, 4))
    positions = [2, 8]

    def log(error: np.ndarray) -> float:
        return float(np.log(1 + (error**2).mean() / 4e-4))

    pixel, edge, adjacent = [], [], []
    for photo, position in enumerate(positions):
        error = made[photo] - images[photo]
        error[position] = 0
        for image in set(range(9 if np.isnan(nearness) else 10)) - {position}:
            pixel.append(log(error[image]))
            across = error[image][:, :, 1:] - error[image][:, :, :-1]
            down = error[image][:, 1:] - error[image][:, :-1]
            edge.append(log(across) + log(down))
        adjacent += [log(error[frame + 1] - error[frame]) for frame in range(8)]
    expected = np.mean(pixel) + 0.1 * np.mean(edge) + 0.1 * np.mean(adjacent)
    batch = batch_of(torch.from_numpy(images), positions, nearness)
    found = compared(made_of(batch, torch.from_numpy(made)), batch, batch.places)
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-6)


def half_sharp(positions: list[int]) -> Batch:
    """Photos that are plain, and images of which all others are sharp in their upper half."""
    images = torch.zeros(len(positions), 10, 3, 64, 64)
    images[..., :32, ::2] = 1.0
    for number, position in enumerate(positions):
        images[number, position] = 0.0
    return batch_of(images, positions)


def test_where_it_gets_sharper_counts_once_more() -> None:
    """Of errors that are everywhere, half of the image counts again, and the rest does not."""
    batch = half_sharp([2, 8])
    error = torch.full_like(batch.images, 0.1).requires_grad_()
    counted = torch.cat([1 - batch.places, torch.zeros(2, 1)], 1)
    found = log_error_where_sharper(error, batch, counted)
    assert float(found.detach()) == pytest.approx(np.log(1 + 0.01 / 4e-4), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, error)
    assert bool(gradient[0, 0, :, :24].all()) and not gradient[0, 0, :, 40:].any()
    assert not gradient[0, 2].any() and not gradient[:, 9].any()

    made = made_of(batch, batch.images + 0.1)
    whole = compared(made, batch, batch.places)["loss"]
    own = log_error_where_sharper(error.detach(), batch, counted)
    none = batch_of(torch.zeros_like(batch.images), [2, 8])
    plain = compared(made_of(none, none.images + 0.1), none, none.places)["loss"]
    assert float(whole - plain) == pytest.approx(regression.SHARPER_WEIGHT * float(own), rel=1e-4)


def test_an_image_that_gets_sharper_nowhere_counts_for_nothing() -> None:
    batch = batch_of(torch.rand(2, 10, 1, 1, 1).expand(2, 10, 3, 64, 64), [2, 8])
    error, counted = torch.ones_like(batch.images), torch.ones(2, 10)
    assert log_error_where_sharper(error, batch, counted) == 0


def test_finer_detail_than_is_compared_makes_no_place_sharper() -> None:
    batch = half_sharp([2, 8])
    made = made_of(batch, batch.images + 0.1)
    none = batch_of(torch.zeros_like(batch.images), [2, 8])
    plain = compared(made_of(none, none.images + 0.1), none, none.places, 4)["loss"]
    assert float(compared(made, batch, batch.places, 4)["loss"]) == pytest.approx(float(plain))


def test_distances_count_where_they_are_known() -> None:
    batch = batch_of(torch.zeros(2, 10, 3, 8, 8), [0, 1], 0.5)
    batch.nearness[1] = torch.nan
    dioptres = torch.tensor([0.75, 99.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2).requires_grad_()
    made = made_of(batch, batch.images)._replace(dioptres=dioptres)
    found = compared(made, batch, batch.places)
    assert (
        float(found["loss"].detach()) == float(found["nearness_error"]) == 0.125
    )  # a mean over both
    (gradient,) = torch.autograd.grad(found["loss"], dioptres)
    assert gradient[0].min() == 0.125 and not gradient[1].any()


def test_a_position_is_guessed_where_it_is_not_given() -> None:
    batch = batch_of(torch.zeros(2, 10, 3, 8, 8), [0, 6])
    likely = torch.full((2, 9), 0.05)
    likely[:, 6] = 0.6
    made = made_of(batch, batch.images)._replace(likely=likely.log())
    given = compared(made, batch, batch.places)
    assert given["loss"] == 0 == given["position_error"]
    found = compared(made, batch, batch.places * torch.tensor([[1.0], [0.0]]))
    assert float(found["loss"]) == pytest.approx(-np.log(0.6) / 2, rel=1e-5)  # of both
    off = 6 - (0.05 * 30 + 0.6 * 6)  # of one in five
    assert float(found["position_error"]) == pytest.approx(off / 2 / 0.2, rel=1e-5)


def test_gain_is_over_copying_and_leaves_out_the_photos_own_frame(
    reference: ReferencePipeline,
) -> None:
    batch = batch_of(torch.rand(2, 10, 3, 32, 32) - 0.5, [0, 8])
    trained = Regression(reference, build_student("micro"))  # copies its photo
    found = trained.losses(batch, GIVEN)
    pairs = zip(batch.images, batch.photos, (slice(1, 9), slice(0, 8)), strict=True)
    others = torch.cat([images[frames] - photo for images, photo, frames in pairs])
    assert found["gain_db"] == 0
    assert found["psnr_db"] == pytest.approx(float(10 * (4 / others.square().mean()).log10()))


def test_one_sample_in_five_is_not_told_where_it_is(reference: ReferencePipeline) -> None:
    trained, generator = Regression(reference, build_student("micro")), torch.Generator()
    drawn = [float(trained.noise(torch.zeros(1), generator)[0]) for _ in range(500)]
    assert set(drawn) == {0.0, 1.0} and 0.75 < sum(drawn) / 500 < 0.85


def test_a_student_through_files_is_compared_like_one_without(
    reference: ReferencePipeline,
) -> None:
    """Its files give what composing does, where nothing is clipped."""
    torch.manual_seed(0)
    trained = Regression(reference, build_student("micro"))
    for layer in (trained.student.network.gains, trained.student.network.pixels):
        torch.nn.init.normal_(layer.weight, std=0.01)
    batch = batch_of(torch.rand(2, 10, 3, 32, 32) - 0.5, [0, 8], 0.5)
    composed = trained.losses(batch, torch.tensor([1.0, 0.0]))
    places = batch.places * torch.tensor([[1.0], [0.0]])
    called = compared(trained.made(batch.photos, places), batch, places)
    for name, value in composed.items():
        torch.testing.assert_close(called[name], value, rtol=1e-4, atol=1e-5)


def test_every_layer_is_in_the_graph_whatever_a_source_tells(reference: ReferencePipeline) -> None:
    """Of each, processes that train together would wait for a gradient."""
    trained = Regression(reference, build_student("micro"))
    batch = batch_of(torch.rand(2, 10, 3, 32, 32) - 0.5, [0, 8])
    trained.losses(batch, GIVEN)["loss"].backward()
    missing = [n for n, p in trained.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
