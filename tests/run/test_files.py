"""Rows of several devices in one file: each replaces its own, and none outlives its files."""

from __future__ import annotations

import os
from pathlib import Path

from pocketfocus.run.files import merge_rows, read_rows


def row(device: str, figure: float, artifact: str = "a.pte") -> dict[str, object]:
    return {"artifact": artifact, "device": device, "p50_ms": figure}


def test_a_device_replaces_its_own_rows_and_keeps_those_of_others(tmp_path: Path) -> None:
    manifest, path = tmp_path / "manifest.json", tmp_path / "bench.json"
    manifest.write_text("{}")
    os.utime(manifest, (1, 1))
    merge_rows(path, [row("host", 1.0), row("host", 2.0, "gone.pte")], ["host"], manifest)
    merge_rows(path, [row("phone", 3.0)], ["phone"], manifest)
    merge_rows(path, [row("host", 4.0)], ["host"], manifest)
    assert read_rows(path) == [row("phone", 3.0), row("host", 4.0)]


def test_rows_older_than_the_files_they_speak_of_go(tmp_path: Path) -> None:
    manifest, path = tmp_path / "manifest.json", tmp_path / "bench.json"
    manifest.write_text("{}")
    os.utime(manifest, (1, 1))
    merge_rows(path, [row("phone", 3.0)], ["phone"], manifest)
    os.utime(path, (2, 2))
    os.utime(manifest, (3, 3))
    merge_rows(path, [row("host", 4.0)], ["host"], manifest)
    assert read_rows(path) == [row("host", 4.0)]
