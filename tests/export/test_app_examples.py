"""The examples for apps quote names, shapes and ranges of the manifest, and fields of a canary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pocketfocus.benchmarks.canary import Canary, Try
from pocketfocus.export.student import student_network
from pocketfocus.export.targets import get_target
from pocketfocus.models.student import SHIPPED_WEIGHTS, load_student
from pocketfocus.quantize.calibration import Calibration

SIZE = load_student().photo_size
NETWORK = student_network(SHIPPED_WEIGHTS, SIZE, Calibration((), (), ()))
EXAMPLES = ("Refocus.kt", "RefocusExecuTorch.swift", "RefocusCoreML.swift", "Refocus.ts")
SPECS = (*NETWORK.inputs, *NETWORK.outputs)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_says_what_the_manifest_says(name: str, root: Path) -> None:
    text = (root / "docs" / "app" / name).read_text(encoding="utf-8")
    assert text.startswith(("// Not compiled here:", "// Type-checked against"))
    words = " ".join(text.replace("//", " ").split())
    places = [words.index(f" {spec.name} {spec.dtype} {list(spec.shape)} in") for spec in SPECS]
    assert places == sorted(places)  # in their order
    for spec in SPECS:
        low, high = (f"{value:g}" for value in spec.range)
        assert f"{spec.name} {spec.dtype} {list(spec.shape)} in [{low}, {high}]" in words


@pytest.mark.parametrize("name", EXAMPLES[:3])  # shapes in the last one are of any size
def test_the_shapes_in_the_code_are_those_of_the_inputs(name: str, root: Path) -> None:
    text = (root / "docs" / "app" / name).read_text(encoding="utf-8")
    code = re.findall(r"(?:longArrayOf\(|shape: \[)([\d, ]+)[\])]", text)
    shapes = [tuple(int(number) for number in found.split(",")) for found in code]
    assert shapes == [spec.shape for spec in NETWORK.inputs]


@pytest.mark.parametrize("name", ["Canary.kt", "Canary.swift", "Refocus.ts"])
def test_an_example_reads_all_of_a_canary(name: str, root: Path) -> None:
    words = set(re.findall(r"\w+", (root / "docs" / "app" / name).read_text(encoding="utf-8")))
    assert {*Canary.model_fields, *Try.model_fields} <= words


def test_the_swift_example_knows_the_compute_units_of_its_files(root: Path) -> None:
    text = (root / "docs" / "app" / "RefocusCoreML.swift").read_text(encoding="utf-8")
    assert tuple(re.findall(r'"(\w+)": \.\w+', text)) == get_target("coreml").units
