"""The losses of one-step regression, against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketfocus.distill.student.regression import Regression, stack_losses
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import build_student


def test_regression_is_zero_only_for_the_stack_itself(reference: ReferencePipeline) -> None:
    student = build_student("micro")
    photo = torch.rand(2, 3, 32, 32) * 1.8 - 0.9
    copies = photo[:, None].expand(2, 9, 3, 32, 32)
    positions = torch.tensor([0, 8])
    trained = Regression(reference, student)
    same = trained.losses(photo, positions, copies)  # untrained: copies its photo
    other = trained.losses(photo, positions, copies.roll(1, -1))
    assert same["loss"] == 0 < other["loss"]


def test_what_learns_gets_a_gradient_and_what_no_stack_teaches_is_frozen(
    reference: ReferencePipeline,
) -> None:
    """Of all others processes that train together would wait for one."""
    trained = Regression(reference, build_student("micro"))
    photo, stacks = torch.rand(2, 3, 32, 32), torch.rand(2, 9, 3, 32, 32)
    trained.losses(photo, torch.tensor([0, 8]), stacks)["loss"].backward()
    frozen = {name for name, p in trained.named_parameters() if not p.requires_grad}
    assert {name.rsplit(".", 1)[0] for name in frozen} == {
        "student.network.dioptres",
        "student.network.position",
    }
    assert frozen == {name for name, p in trained.named_parameters() if p.grad is None}


def test_the_loss_has_an_edge_and_an_adjacent_frame_term() -> None:
    """Summed frame by frame in numpy; the frame of the photo's own position counts only beside its
    neighbours."""
    generator = np.random.default_rng(0)
    made, stacks = generator.uniform(-1, 1, (2, 2, 9, 3, 6, 5))
    positions = [2, 8]

    def log(error: np.ndarray) -> float:
        return float(np.log(1 + (error**2).mean() / 4e-4))

    pixel, edge, adjacent = [], [], []
    for photo, position in enumerate(positions):
        error = made[photo] - stacks[photo]
        for frame in set(range(9)) - {position}:
            pixel.append(log(error[frame]))
            across = error[frame][:, :, 1:] - error[frame][:, :, :-1]
            down = error[frame][:, 1:] - error[frame][:, :-1]
            edge.append(log(across) + log(down))
        adjacent += [log(error[frame + 1] - error[frame]) for frame in range(8)]
    expected = np.mean(pixel) + 0.1 * np.mean(edge) + 0.1 * np.mean(adjacent)
    tensors = torch.from_numpy(made), torch.from_numpy(stacks)
    photos = tensors[1][torch.arange(2), torch.tensor(positions)]
    found = stack_losses(tensors[0], photos, torch.tensor(positions), tensors[1])
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-6)


def test_gain_is_over_copying_and_leaves_out_the_photos_own_frame(
    reference: ReferencePipeline,
) -> None:
    student = build_student("micro")  # copies its photo
    stacks = torch.rand(2, 9, 3, 32, 32) - 0.5
    positions = torch.tensor([0, 8])
    photo = stacks[torch.arange(2), positions]
    trained = Regression(reference, student)
    found = trained.losses(photo, positions, stacks)
    others = torch.cat([stacks[0, 1:] - photo[0], stacks[1, :8] - photo[1]])
    assert found["gain_db"] == 0
    assert found["psnr_db"] == pytest.approx(float(10 * (4 / others.square().mean()).log10()))
