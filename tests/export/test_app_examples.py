"""The examples for apps quote names, shapes and ranges of the manifest, and fields of a canary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pocketfocus.benchmarks.canary import Called, Canary, Sized, Try
from pocketfocus.export.coreml.write import MAIN
from pocketfocus.export.executorch.write import METHOD
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


@pytest.mark.parametrize("name", EXAMPLES[:3])  # the last one is told its usual method
def test_the_usual_method_and_the_shape_of_the_position_are_those_of_the_files(
    name: str, root: Path
) -> None:
    text = (root / "docs" / "app" / name).read_text(encoding="utf-8")
    (method,) = re.findall(r'Method\((?:name: )?"(\w+)", (?:size: \[)?(\d+), (\d+)\]?\)', text)
    main = MAIN if "CoreML" in name else METHOD
    assert (method[0], (int(method[1]), int(method[2]))) == (main, SIZE)
    code = re.findall(r"(?:longArrayOf\(|shape: \[)([\d, ]+)[\])]", text)
    shapes = [tuple(int(number) for number in found.split(",")) for found in code]
    assert (1, 9) in shapes and set(shapes) <= {(1, 9), (1, 3)}  # a photo's has the method's size


@pytest.mark.parametrize("name", ["Canary.kt", "Canary.swift", "Refocus.ts"])
def test_an_example_reads_all_of_a_canary(name: str, root: Path) -> None:
    words = set(re.findall(r"\w+", (root / "docs" / "app" / name).read_text(encoding="utf-8")))
    fields = {field for row in (Canary, Try, Sized, Called) for field in row.model_fields}
    assert fields <= words


def test_the_swift_example_knows_the_compute_units_of_its_files(root: Path) -> None:
    text = (root / "docs" / "app" / "RefocusCoreML.swift").read_text(encoding="utf-8")
    assert tuple(re.findall(r'"(\w+)": \.\w+', text)) == get_target("coreml").units
