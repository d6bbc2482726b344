"""What all tests share: no network, one thread, and a student small enough to export in seconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network is a mistake: let it fail
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def small_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random student for 64-pixel photos, its head not zero."""
    import torch

    from pocketfocus.student import RefocusStudent

    torch.manual_seed(0)
    student = RefocusStudent(channels=(8, 16, 16), blocks=(1, 1, 1), size=(64, 64))
    torch.nn.init.normal_(student.network.head.weight, std=0.5)
    folder = tmp_path_factory.mktemp("student")
    student.save_pretrained(folder)
    return folder
