"""The first look: a photo between two that a student makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfocus.data.scenes import held_out_photos
from pocketfocus.export.open import open_model
from pocketfocus.models.model import Model
from pocketfocus.models.student import SHIPPED_WEIGHTS
from pocketfocus.photos.firstlook import GAP, SIDE, save_first_look, student_of
from pocketfocus.run.errors import UserError


def test_a_photo_between_near_and_far(tmp_path: Path) -> None:
    photo = held_out_photos()[0][:, ::-1].copy()
    save_first_look(open_model(str(SHIPPED_WEIGHTS)), photo, tmp_path / "first.jpg")
    look = np.asarray(Image.open(tmp_path / "first.jpg")).astype(float)
    height, width = photo.shape[:2]
    assert look.shape == (height, 3 * width + 2 * GAP, 3)
    near, own, far = (
        look[:, start : start + width] for start in (0, width + GAP, 2 * (width + GAP))
    )
    assert np.abs(own - photo).mean() < 3  # JPEG alone
    for other in (near, far):
        assert 1 < np.abs(other - photo).mean() < 30
    assert np.abs(near - far).mean() > 2


def test_a_large_photo_is_scaled_down(tmp_path: Path) -> None:
    photo = np.full((600, 2 * SIDE, 3), 128, np.uint8)
    save_first_look(open_model(str(SHIPPED_WEIGHTS)), photo, tmp_path / "first.jpg", "1" * 64)
    assert student_of(tmp_path / "first.jpg") == "1" * 64
    assert Image.open(tmp_path / "first.jpg").size == (3 * SIDE + 2 * GAP, 300)


def test_a_model_that_finds_no_position_is_refused(tmp_path: Path) -> None:
    model = Model("stacks", None, lambda photo, position: torch.zeros(9, 3, 64, 64))
    with pytest.raises(UserError, match="stacks does not tell where"):
        save_first_look(model, np.zeros((64, 64, 3), np.uint8), tmp_path / "first.jpg")
    assert not list(tmp_path.iterdir())
