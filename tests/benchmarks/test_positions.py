"""`verify --positions`: a row says of which positions its figure is."""

from __future__ import annotations

import pytest

from pocketfocus.benchmarks import verify
from tests.benchmarks.rows import verify_row


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
    assert verify.partial_row(verify_row(**given), (2, 8)).why == said
