"""The layer that was damaged is the layer that is named, in the files of all three targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pocketfocus.benchmarks.locate import Recorder, locate_fault
from pocketfocus.models.student import load_student, save_student
from pocketfocus.quantize.layers import layers_of
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256
from pocketfocus.run.manifest import load_manifest
from tests.conftest import Exported

pytestmark = pytest.mark.usefixtures("one_process")

FILES = (
    "coreml/student-int8.mlpackage",
    "onnx/student-int8.onnx",
    "executorch/student-int4.pte",  # int8 convolutions, 4-bit linear layers
)


@pytest.fixture(scope="module")
def run(exported: Exported) -> Path:
    return exported(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_good_file_stays_within_every_tolerance(name: str, run: Path) -> None:
    found = locate_fault(run, name)
    named = [row.layer for row in found.rows]
    layers = list(layers_of(load_student(run / "student")))
    assert sorted(set(named) & set(layers)) == sorted(layers)
    assert named[-1] == "stack"
    assert found.summary == "every layer stays within its tolerance"


@pytest.mark.parametrize(("name", "place"), list(zip(FILES, (1, 3, -2), strict=True)))
def test_the_damaged_layer_is_named(name: str, place: int, run: Path) -> None:
    """The student is damaged instead: the file then is what differs, from this layer on."""
    manifest, folder = load_manifest(run), run / "student"
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    student = load_student(folder)
    layer = list(layers_of(student))[place]
    with torch.no_grad():
        student.get_submodule(layer).get_parameter("weight").mul_(-1)
    try:
        save_student(student, folder, half=False)
        replace(manifest, student_sha256=sha256(folder)).save(run)
        found = locate_fault(run, name)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
        manifest.save(run)
    assert f"the student's {layer}, with" in found.summary


@pytest.mark.parametrize(
    ("behind", "limits"),
    [
        (nn.ReLU(), (0.0, float("inf"))),
        (nn.ReLU6(), (0.0, 6.0)),
        (nn.Hardtanh(-2.0, 3.0), (-2.0, 3.0)),
        (nn.Hardswish(), (-float("inf"), float("inf"))),
    ],
)
def test_a_rectifier_behind_a_layer_limits_what_is_compared(
    behind: nn.Module, limits: tuple[float, float]
) -> None:
    """Toolchains fuse it with the layer, whose own output then is nowhere to be seen."""
    given = torch.randn(1, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), behind).eval()
    recorder = Recorder(torch.export.export(model, (given,)).module())
    recorder.run(given)
    (layer,) = recorder.layers
    assert (layer.path, layer.limits, layer.weights) == ("0", limits, 108)
    torch.testing.assert_close(layer.value, model[0](given))


def test_what_cannot_be_opened_up(run: Path) -> None:
    with pytest.raises(UserError, match=r"holds no x\.pte: choose from executorch/student-int4"):
        locate_fault(run, "x.pte")
