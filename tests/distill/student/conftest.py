"""Distillations so small that each takes seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.distill.student import consistency
from pocketfocus.distill.student.options import Distillation
from pocketfocus.distill.train.crops import Crops
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.sampling import PUBLISHED


@pytest.fixture(scope="module")
def reference(small_reference: Path) -> ReferencePipeline:
    return load_reference(str(small_reference))


KEEPS_PUBLISHED = replace(SMALLEST, relative_latents=False)  # the published formulation, small


@pytest.fixture(scope="module", params=[SMALLEST, KEEPS_PUBLISHED], ids=["relative", "published"])
def either(request: pytest.FixtureRequest) -> ReferencePipeline:
    torch.manual_seed(0)
    return build_reference(request.param)


@pytest.fixture
def short_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consistency distillation samples the reference in two steps, where 25 are published."""
    monkeypatch.setattr(consistency, "PUBLISHED", replace(PUBLISHED, steps=2))


@pytest.fixture(scope="session")
def noise_folder(
    noise: np.ndarray,
    write_stacks: Callable[[Path, np.ndarray], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The stacks of `noise` as images."""
    return write_stacks(tmp_path_factory.mktemp("noise"), noise)


@pytest.fixture
def options(
    small_reference: Path, small_student: Path, noise_folder: Path
) -> Callable[..., Distillation]:
    """options(**changes): three steps without a clock, of three teacher stacks and `noise`."""

    def make(**changes: Any) -> Distillation:
        own: dict[str, Any] = {
            "minutes": math.inf,
            "steps": 3,
            "reference": str(small_reference),
            "start": small_student,
            "sources": (str(noise_folder),),
            "crops": (Crops(1.0, 1, 64),),
            "max_teacher_stacks": 3,
        }
        return Distillation(**{**own, **changes})

    return make
