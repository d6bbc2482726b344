"""The cost of a photo's size: what is measured, and the exponent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from pocketfocus.research.photo_sizes import Cost, _one, exponent, photo_of, table
from pocketfocus.run.errors import UserError

COSTS = [Cost(mp, 2 * mp, mp**0.5, 100.0) for mp in (0.3, 1, 4, 16)]


def test_photos_have_that_size(tmp_path: Path) -> None:
    photo_of(1.2, tmp_path / "photo.jpg")
    assert Image.open(tmp_path / "photo.jpg").size == (1265, 949)


def test_a_process_is_measured(tmp_path: Path) -> None:
    code = "import time\nx = bytearray(200 << 20)\nend = time.process_time() + 0.4\n"
    code += "while time.process_time() < end: pass"
    wall, cpu, mebibytes = _one([sys.executable, "-c", code], tmp_path)
    assert wall >= cpu > 0.2
    assert 200 < mebibytes < 300
    with pytest.raises(UserError, match="ended with 3"):
        _one([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_exponents() -> None:
    powers = [exponent(COSTS, name) for name in ("wall_s", "cpu_s", "peak_mib")]
    assert powers == pytest.approx([1, 0.5, 0], abs=1e-9)
    assert table(COSTS).splitlines()[-1] == "| exponent | 1.00 | 0.50 | 0.00 |"
