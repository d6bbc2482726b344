"""The README's picture: every frame is in it, in order, beside the photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.research.nine_frames import main, sheet

SIZE = (60, 40)
PHOTO = (200, 30, 40)
FRAMES = [(20 * index, 100, 250 - 20 * index) for index in range(9)]


def test_the_photo_and_its_frames_are_side_by_side() -> None:
    photo = Image.new("RGB", (90, 60), PHOTO)
    made = np.asarray(sheet(photo, [Image.new("RGB", SIZE, colour) for colour in FRAMES]))
    places = []
    for colour in (PHOTO, *FRAMES):
        rows, columns = np.nonzero((made == colour).all(-1))
        top, left, bottom, right = map(int, (rows.min(), columns.min(), rows.max(), columns.max()))
        assert (right - left + 1, bottom - top + 1) == SIZE and len(rows) == SIZE[0] * SIZE[1]
        places.append((top, left))
    beside, *frames = places
    assert frames == sorted(frames), "in reading order"
    assert beside[1] == 0 < min(column for _, column in frames)


def test_the_picture_is_of_the_folders_frames(tmp_path: Path) -> None:
    for index, colour in enumerate(FRAMES):
        Image.new("RGB", SIZE, colour).save(tmp_path / f"frame_{index}.png")
    Image.new("RGB", (90, 60), PHOTO).save(tmp_path / "photo.png")
    main([str(tmp_path / "photo.png"), str(tmp_path), str(tmp_path / "picture.jpg")])
    expected = sheet(Image.new("RGB", (90, 60), PHOTO), [Image.new("RGB", SIZE, c) for c in FRAMES])
    with Image.open(tmp_path / "picture.jpg") as picture:
        difference = np.asarray(picture).astype(int) - np.asarray(expected)
    assert np.abs(difference).mean() < 2


def test_a_folder_without_frames_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (90, 60), PHOTO).save(tmp_path / "photo.png")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "photo.png"), str(tmp_path), str(tmp_path / "picture.jpg")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"nine_frames: {tmp_path} holds no frames")
    assert not (tmp_path / "picture.jpg").exists()
