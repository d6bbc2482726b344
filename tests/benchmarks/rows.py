"""Rows of verify.json and bench.json for tests: what a test is not about has a plain value."""

from __future__ import annotations

from typing import Any

from pocketfocus.run.results import MEASURED, BenchRow, VerifyRow

ORIGIN = {"model": "", "chip": "", "os": "", "runtime": ""}
ABOUT = {"artifact": "a", "target": "onnx", "precision": "int8", "device": "host"}


def bench_row(**given: Any) -> BenchRow:
    """A row with these fields; figures that are not given are None."""
    plain = {**ABOUT, **dict.fromkeys(MEASURED), "bytes": None, "status": "measured", "why": ""}
    return BenchRow(**{**plain, **ORIGIN, **given})


def verify_row(**given: Any) -> VerifyRow:
    """A row with these fields, passed where nothing else is said."""
    gate = {"gate": "int8 file, executed", "psnr_db": 50.0, "threshold_db": 40.0}
    return VerifyRow(**{**ABOUT, **gate, "status": "pass", "why": "", **ORIGIN, **given})
