"""One export of a small student to every target and precision, shared by all tests of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pocketfocus.export.stage import export_run
from pocketfocus.export.targets import TARGETS
from pocketfocus.optics import one_hot
from pocketfocus.quantize.calibration import fitted
from pocketfocus.quantize.recipes import RECIPES
from pocketfocus.scenes import held_out_photos
from pocketfocus.student import RefocusStudent, load_student

SIZE = 64
POSITIONS = (0, 5, 8)


@pytest.fixture(scope="session")
def student_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of layer once or twice; frames that differ clearly, unlike at initialisation."""
    torch.manual_seed(0)
    student = RefocusStudent(channels=(8, 16), blocks=(1, 1), size=(SIZE, SIZE))
    torch.nn.init.normal_(student.network.head.weight, std=0.25)
    torch.nn.init.normal_(student.network.head.bias, std=0.1)
    for embed in student.network.position:
        torch.nn.init.normal_(embed.weight, std=0.5)
    folder = tmp_path_factory.mktemp("small")
    student.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_dir(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all fifteen files; tests must not change it."""
    out = tmp_path_factory.mktemp("run")
    export_run(student_dir, out, list(TARGETS), list(RECIPES), log=lambda line: None)
    return out


@pytest.fixture(scope="session")
def pairs() -> list[tuple[Tensor, int]]:
    """Held-out real photos, which calibration never sees, and positions."""
    photos = [fitted(Image.fromarray(photo), (SIZE, SIZE)) for photo in held_out_photos()]
    return [(photo, position) for photo in photos for position in POSITIONS]


@pytest.fixture(scope="session")
def eager(student_dir: Path, pairs: list[tuple[Tensor, int]]) -> list[Tensor]:
    """The eager student's stacks of `pairs`."""
    student = load_student(student_dir)
    with torch.inference_mode():
        return [student(photo, one_hot(position)) for photo, position in pairs]
