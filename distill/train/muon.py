"""Muon: momentum whose matrices are made orthogonal before they are applied.

Every convolution's kernel is a matrix [out, in * k * k]; five steps of the quintic Newton-Schulz
iteration bring the singular values of its momentum near 1 (Jordan et al., 2024), and the scale is
that of Moonlight (arXiv 2502.16982, equation 4), so that AdamW's learning rates serve. An update is
as large whatever the gradient's size, and one of an outlier would lead for twenty steps: clip
gradients before, and decay weights, which no norm holds (docs/training.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
RMS = 0.2  # of an update, as AdamW's has it


class Muon(torch.optim.Optimizer):
    """For parameters of two or more dimensions; vectors, and layers that end a network, stay with
    AdamW.

    Args:
        parameters: to update, flattened to matrices from their second dimension on.
        lr: the learning rate, as for AdamW.
        momentum: share of the old momentum that is kept in a step; the update looks one ahead.
        weight_decay: decoupled, times the learning rate.
        others: steps along with what this one is not for; its groups and state are then this one's.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
        others: torch.optim.Optimizer | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)
        self.others = others
        self.param_groups += others.param_groups if others is not None else []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients; parameters of one shape are made orthogonal together."""
        group, *rest = self.param_groups
        shapes: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            average = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            ahead = parameter.grad.lerp(average, group["momentum"])
            shapes[parameter.shape].append((parameter, ahead.flatten(1)))
        for shape, pairs in shapes.items():
            updates = orthogonal(torch.stack([update for _, update in pairs]))
            scale = RMS * max(updates.shape[1:]) ** 0.5
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.reshape(shape).to(parameter), alpha=-group["lr"] * scale)
        if self.others is not None:  # accelerate puts others in the place of groups and state
            self.others.param_groups, self.others.state = rest, self.state
            self.others.step()


def orthogonal(matrices: Tensor) -> Tensor:
    """[N, rows, columns], each brought near U V^T of its singular value decomposition, in bf16."""
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
