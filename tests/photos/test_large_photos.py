"""Photos that are much larger than what is made of them: the memory that they take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from pocketfocus.data.scenes import bundled_photos
from pocketfocus.photos.images import load_photo
from pocketfocus.photos.pixels import open_photo
from pocketfocus.run.errors import UserError


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_photo_is_read_as_small_as_is_needed(kind: str, tmp_path: Path) -> None:
    photo = Image.fromarray(bundled_photos()["coffee"])
    photo.resize((900, 600)).save(tmp_path / "photo", kind, quality=95)
    small = load_photo(tmp_path / "photo", (32, 48))
    assert 3 * 48 <= min(small.size) < 600
    resized = [
        np.asarray(image.resize((48, 32), Image.Resampling.LANCZOS), np.float32)
        for image in (small, load_photo(tmp_path / "photo"))
    ]
    assert np.abs(resized[0] - resized[1]).mean() < 0.5


LARGE = """
import sys
from pathlib import Path
from pocketfocus.photos.images import load_photo
from pocketfocus.run.memory import peak_mib
before = peak_mib()
load_photo(Path(sys.argv[1]), (256, 256))
print(peak_mib() - before)
"""


def test_a_large_photo_takes_little_more_memory_than_its_decoding(tmp_path: Path) -> None:
    """24 million pixels: 92 MiB decoded, 430 MiB when they were converted as a whole."""
    Image.new("RGBA", (6000, 4000), (1, 2, 3, 99)).save(tmp_path / "l.png", compress_level=1)
    command = [sys.executable, "-c", LARGE, str(tmp_path / "l.png")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(said) < 220


def test_what_memory_is_too_small_for_is_refused_by_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (4096, 2048)).save(tmp_path / "large.png")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=50_000_000))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it is decoded"))
    said = "4096x2048 pixels, which take 0.1 GB of memory, and 0.1 GB are free: scale it down"
    with pytest.raises(UserError, match=said):
        load_photo(tmp_path / "large.png")


def test_16_bits_take_more_memory_than_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.zeros((2048, 3072, 3), np.uint16)
    tifffile.imwrite(tmp_path / "large.tif", flat, photometric="rgb", compression="zlib")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=80_000_000))
    assert open_photo(tmp_path / "large.tif").pixels.dtype == np.uint8
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it is decoded"))
    with pytest.raises(UserError, match=r"which take 0.1 GB of memory, and 0.1 GB are free"):
        open_photo(tmp_path / "large.tif", deep=True)


WHOLE = """
import sys
from pathlib import Path
from pocketfocus.photos.pixels import open_photo
from pocketfocus.run.memory import keep_freed_memory, peak_mib
keep_freed_memory()
before = peak_mib()
print(*open_photo(Path(sys.argv[1])).size, peak_mib() - before)
"""


def test_the_pixels_of_a_large_photo_are_unpacked_without_copies(tmp_path: Path) -> None:
    """48 million: as the decoder has them 183 MiB, as they are 137; all at once 137 more."""
    Image.new("RGB", (8000, 6000), (1, 2, 3)).save(tmp_path / "l.png", compress_level=1)
    command = [sys.executable, "-c", WHOLE, str(tmp_path / "l.png")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert said[:2] == ["6000", "8000"]
    assert float(said[2]) < 390


NINE = """
import sys
from pathlib import Path
import numpy as np
import torch
from pocketfocus.photos.gallery import save_refocus
from pocketfocus.run.memory import peak_mib

class Made:
    def __init__(self, width):
        self.width = width

    def picture(self, focus, aperture=1.0):
        return np.full((3 * self.width // 4, self.width, 3), int(focus), np.uint8)

    def focus_map(self):
        return torch.zeros(12, 16)

def peak(width, folder):
    made = Made(width)
    save_refocus(made, made.picture(0), 4, Path(sys.argv[1]) / folder, "echo")
    return peak_mib()

small = peak(1280, "small")
print(peak(3000, "large") - small)
"""


def test_nine_frames_are_in_memory_one_at_a_time(tmp_path: Path) -> None:
    """Of 19 MiB each; of frames of 34 all of them at once, and their video, took 1,145."""
    command = [sys.executable, "-c", NINE, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(said) < 4 * 20
    assert Image.open(tmp_path / "large" / "frame_8.png").size == (3000, 2250)
