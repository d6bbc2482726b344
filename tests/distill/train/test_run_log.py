"""What a training leaves to look at."""

from __future__ import annotations

import torch

from pocketfocus.distill.train.run_log import stack_picture


def test_rows_of_a_picture_are_input_truth_and_estimate() -> None:
    truth, estimate = torch.rand(9, 3, 4, 4), torch.rand(9, 3, 4, 4)
    picture = stack_picture(truth, estimate, 2)
    assert torch.equal(picture[:, :4, 8:12], truth[2]) and picture[:, :4, :8].abs().max() == 0
    assert torch.equal(picture[:, 4:8, 4:8], truth[1])
    assert torch.equal(picture[:, 8:, -4:], estimate[8])
