"""`verify --positions`: a row says of which positions and photos its figure is."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pocketfocus.benchmarks import verify
from pocketfocus.benchmarks.verify import Verification
from pocketfocus.models.student import load_student
from tests.benchmarks.rows import verify_row
from tests.benchmarks.test_verify import InProcess, MakeRun

NAME = "onnx/student-fp32.onnx"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "at positions 2, 8 only"),
        ({"why": "worst is a, position 2"}, "worst is a, position 2; at positions 2, 8 only"),
        ({"psnr_db": None}, ""),
        ({"gate": "drawn pictures, int8 file, executed"}, ""),
        ({"gate": "photos of 80x48, int8 file, executed"}, ""),
        ({"artifact": "onnx/render-fp32.onnx"}, ""),
    ],
)
def test_only_what_has_fewer_positions_says_so(given: dict[str, object], said: str) -> None:
    row = verify.telling(verify_row(**given), "1" * 64, (2, 8))
    assert row.why == said
    assert row.photos_sha256 == ("1" * 64 if said else None)


def test_rows_tell_apart_on_which_photos_they_are(
    small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    """Also where the first of several is the same, which is the one that is shown."""
    device = InProcess({NAME: load_student(small_student)})
    paths = [tmp_path / f"{n}.png" for n in range(5)]
    for number, path in enumerate(paths):
        Image.new("RGB", (64, 64), (50 * number, 0, 0)).save(path)
    make_run(tmp_path, small_student, [NAME])
    found, shown = [], []
    for photos in (paths[:1], paths, paths[:4], paths):
        rows = verify.verify_run(tmp_path, device, Verification(photos, positions=(4,)))
        found.append({row.photos_sha256 for row in rows})
        shown.append((tmp_path / "stacks.npz").read_bytes())
    assert len(set(shown)) == 1
    assert [len(hashes) for hashes in found] == [1] * 4
    assert found[1] == found[3] and len(set.union(*found)) == 3
