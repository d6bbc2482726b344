"""The operators that the MIL check knows, by the names MIL gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Operator = Callable[..., "Tensor | Sequence[Tensor]"]
"""Takes an operator's inputs by MIL's names, floats as float32; gives its output or outputs."""

OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register a function as the meaning of the MIL operators `names`."""

    def register(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = function
        return function

    return register


def integers(values: Any) -> list[int]:
    """A constant as plain integers, whatever its rank."""
    return [int(v) for v in torch.as_tensor(values).reshape(-1)]


def booleans(values: Any, count: int) -> list[bool]:
    """A mask as plain booleans; None is a mask of `count` times False."""
    if values is None:
        return [False] * count
    return [bool(v) for v in torch.as_tensor(values).reshape(-1)]
