"""What a student learns from: photos, flips, and what is held out."""

from __future__ import annotations

import numpy as np
import torch

from pocketfocus.distill.student.samples import Sample, sample_batch, split, true_batch


def test_true_batch_takes_the_photo_from_its_position(noise: np.ndarray) -> None:
    photos, positions, frames = true_batch(noise, 4, 32, torch.Generator().manual_seed(0))
    for photo, position, stack in zip(photos, positions, frames, strict=True):
        assert torch.equal(photo, stack[position])


def test_flips_keep_photo_and_stack_together() -> None:
    stack = torch.rand(9, 3, 8, 8) * 2 - 1
    sample = Sample(stack[3:4], 3, stack)
    photos, positions, stacks = sample_batch([sample], 8, torch.Generator().manual_seed(0))
    for photo, position, made in zip(photos, positions, stacks, strict=True):
        assert torch.equal(photo, made[position])


def test_stacks_that_are_scored_on_are_not_learned_from() -> None:
    numbered = np.arange(20, dtype=np.uint8)[:, None, None, None, None]
    many = np.broadcast_to(numbered, (20, 9, 3, 2, 2)).copy()
    material = split([], many)
    held_out, others = material.held_out, material.true_stacks
    assert others is not None and not material.teacher_stacks
    scored = [round(float(sample.stack.mean() + 1) * 127.5) for sample in held_out]
    assert scored == [0, 1, 2, 3] and sorted({int(stack.mean()) for stack in others}) == [
        *range(4, 20)
    ]
    assert [sample.position for sample in held_out] == [0, 1, 2, 3]
    assert all(torch.equal(s.photo[0], s.stack[s.position]) for s in held_out)
    alone = split([], many[:1]).true_stacks
    assert alone is not None and len(alone) == 1
