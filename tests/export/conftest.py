"""Photos, and what the small student makes of them, for all tests of its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.models.student import Analysis, load_student
from pocketfocus.quantize.calibration import fitted

SIZE = 64
POSITIONS = (0, 5, 8)


@pytest.fixture(scope="session")
def pairs() -> list[tuple[Tensor, int]]:
    """Held-out real photos, which calibration never sees, and positions."""
    photos = [fitted(Image.fromarray(photo), (SIZE, SIZE)) for photo in held_out_photos()]
    return [(photo, position) for photo in photos for position in POSITIONS]


@pytest.fixture(scope="session")
def analysed(small_student: Path, pairs: list[tuple[Tensor, int]]) -> list[Analysis]:
    """What the eager student says of `pairs`."""
    student = load_student(small_student)
    with torch.inference_mode():
        return [student.analyse(photo, one_hot(position)) for photo, position in pairs]


@pytest.fixture(scope="session")
def eager(analysed: list[Analysis]) -> list[Tensor]:
    """The eager student's stacks of `pairs`."""
    return [each.stack for each in analysed]
