"""References of both kinds with random weights everywhere: no norm, bias or blend at its start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import nn

from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.mobile.pipeline import rewritten
from pocketfocus.models.reference import ReferencePipeline

Module = TypeVar("Module", bound=nn.Module)


def randomised(module: Module, seed: int = 0) -> Module:
    """Vectors far from where training starts them, matrices a little, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        change = torch.randn(parameter.shape, generator=generator)
        scale = 0.2 if parameter.ndim < 2 else 0.02
        with torch.no_grad():
            parameter.add_(scale * change)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], nn.Module]:
    """The function `randomised`."""
    return randomised


@pytest.fixture(scope="session", params=[False, True], ids=["absolute", "relative"])
def reference(request: pytest.FixtureRequest) -> ReferencePipeline:
    """A small reference, as published or relative."""
    torch.manual_seed(0)
    made = build_reference(replace(SMALLEST, relative_latents=request.param))
    for part in (made.vae, made.unet, made.image_encoder):
        randomised(part)
    return made


@pytest.fixture(scope="session")
def mobile(reference: ReferencePipeline) -> ReferencePipeline:
    """The same, rewritten."""
    return rewritten(reference)
