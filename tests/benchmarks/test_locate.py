"""The layer that was damaged is the layer that is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pocketfocus.benchmarks.locate import locate_fault
from pocketfocus.errors import UserError
from pocketfocus.files import sha256
from pocketfocus.manifest import load_manifest
from pocketfocus.quantize.layers import layers_of
from pocketfocus.student import load_student
from tests.conftest import Exported

PRECISIONS = ("fp32", "fp16", "int8", "int4")


@pytest.fixture(scope="module")
def run(exported: Exported) -> Path:
    return exported([f"coreml/student-{precision}.mlpackage" for precision in PRECISIONS])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_good_file_stays_within_every_tolerance(precision: str, run: Path) -> None:
    found = locate_fault(run, f"coreml/student-{precision}.mlpackage")
    student = load_student(run / "student")
    layers = layers_of(student)
    named = [row["layer"] for row in found.rows]
    assert sorted(set(named) & set(layers)) == sorted(layers)
    assert named[-1] == "stack"
    assert found.summary == "every layer stays within its tolerance"


@pytest.mark.parametrize("place", [0, 5, -1])
def test_the_damaged_layer_is_named(place: int, run: Path) -> None:
    """The student is damaged instead: the file then is what differs, from this layer on."""
    manifest, folder = load_manifest(run), run / "student"
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    student = load_student(folder)
    layer = list(layers_of(student))[place]
    with torch.no_grad():
        student.get_submodule(layer).weight.mul_(-1)
    try:
        student.save_pretrained(folder)
        replace(manifest, student_sha256=sha256(folder)).save(run)
        found = locate_fault(run, "coreml/student-int8.mlpackage")
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
        manifest.save(run)
    assert f"the student's {layer}, with" in found.summary


def test_what_cannot_be_opened_up(run: Path, small_student: Path) -> None:
    with pytest.raises(UserError, match=r"holds no x\.pte: choose from coreml/student-fp32"):
        locate_fault(run, "x.pte")
