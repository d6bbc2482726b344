"""Core AI assets: written alike every time, read back, and executed by coreai-core."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coreai_torch")

from pocketfocus.benchmarks.locate import locate_fault
from pocketfocus.cli import main
from pocketfocus.data.optics import one_hot
from pocketfocus.export.coreai.read import input_shapes, names
from pocketfocus.export.coreai.write import converted, open_file, save
from pocketfocus.export.network import Network
from pocketfocus.export.open import open_model
from pocketfocus.export.stage import Export, export_run
from pocketfocus.export.student import INPUT_NAMES
from pocketfocus.export.targets import get_target
from pocketfocus.mobile_harness.device import Job
from pocketfocus.mobile_harness.devices import get_device, origin
from pocketfocus.models.student import Analysis, load_student
from pocketfocus.quantize.recipes import RECIPES, Form, Scheme
from pocketfocus.quantize.toolchains.coreai import program
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256
from pocketfocus.run.manifest import Artifact, load_manifest
from pocketfocus.run.metrics import psnr
from tests.conftest import Exported, one_worker

Pairs = list[tuple[Tensor, int]]
FILES = tuple(f"coreai/student-{precision}.aimodel" for precision in RECIPES)


@pytest.fixture(scope="module")
def run(exported: Exported) -> Path:
    return exported(FILES)


def artifact(run: Path, precision: str) -> Artifact:
    return next(a for a in load_manifest(run).artifacts if a.precision == precision)


@pytest.mark.parametrize("precision", RECIPES)
def test_an_executed_asset_is_the_student(
    precision: str, run: Path, pairs: Pairs, eager: list[Tensor]
) -> None:
    model = open_file(run / artifact(run, precision).name)
    least = RECIPES[precision].min_psnr_db
    stacks = [model(photo, one_hot(position))[0] for photo, position in pairs]
    for stack, parent in zip(stacks, eager, strict=True):
        assert stack.shape == parent.shape
        assert psnr(stack, parent) >= least
        assert psnr(stack.flip(0), parent) < 35


def test_an_asset_gives_all_that_the_student_says_in_its_order(
    run: Path, pairs: Pairs, analysed: list[Analysis]
) -> None:
    model = open_file(run / artifact(run, "fp32").name)
    for (photo, position), parent in zip(pairs, analysed, strict=True):
        for found, truth in zip(model(photo, one_hot(position)), parent, strict=True):
            torch.testing.assert_close(found, truth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", RECIPES)
def test_assets_keep_their_contract_and_tell_no_places(precision: str, run: Path) -> None:
    path = run / artifact(run, precision).name
    assert names(path) == ([*INPUT_NAMES], [*Analysis._fields])
    assert input_shapes(path) == [(1, 3, 64, 64), (1, 9)]
    content = (path / "main.mlirb").read_bytes()
    assert b"site-packages" not in content and b"pocketfocus/" not in content
    assert json.loads((path / "metadata.json").read_text())["creationDate"].startswith("1970")


def test_schemes_are_read_from_the_file(run: Path) -> None:
    def bits(precision: str) -> Counter[int]:
        rows = artifact(run, precision).applied["layers"].values()
        return Counter(row["bits"] for row in rows)

    assert set(bits("fp32")) == {32} and set(bits("fp16")) == {16}
    assert bits("int8").keys() == {32, 8} and bits("int8")[32] == 3
    assert set(bits("int4")) == {16, 8, 4} and set(bits("mixed")) == {32, 8, 4}
    numbers = artifact(run, "int4").applied["numbers"]
    assert numbers["Int4"] > 0 < numbers["Int8"]


def test_lint_tells_blocks_of_integers_from_palettes(small_student: Path, tmp_path: Path) -> None:
    forms = {"palettes": "form: palette, granularity: 8", "blocks": "granularity: 16"}
    recipes = {name: tmp_path / f"{name}.yaml" for name in forms}
    for name, recipe in recipes.items():
        rules = f"[{{bits: 4, {forms[name]}}}]"
        recipe.write_text(f"{{name: {name}, min_psnr_db: 30, rules: {rules}}}")
    out = Export(tmp_path / "out", ["coreai"], [*map(str, recipes.values())])
    manifest = export_run(small_student, out, log=lambda line: None)
    found = {
        file.precision: [each.rule for each in get_target("coreai").lint(out.out / file.name)]
        for file in manifest.artifacts
    }
    stem = ["strided-palettes"]  # of stride 4
    assert found == {"palettes": stem, "blocks": ["integers-in-blocks"]}


@pytest.mark.parametrize(
    ("form", "strides", "found"),
    [
        ("palette", (1, 3), ["strided-palettes"]),
        ("palette", (2, 2), []),
        ("affine", (4, 4), ["integers-in-blocks"]),
    ],
)
def test_lint_finds_palettes_in_convolutions_of_large_strides(
    form: Form, strides: tuple[int, int], found: list[str], tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3, strides)).eval()
    scheme = Scheme(4, form, 8 if form == "palette" else 18)
    captured = program(network, {"0": scheme}, [(torch.zeros(1, 4, 24, 24),)])
    ends = {end: [SimpleNamespace(name=end)] for end in ("inputs", "outputs")}
    asset = converted(captured, cast(Network, SimpleNamespace(**ends)))
    save(asset, tmp_path / "a.aimodel")
    assert [each.rule for each in get_target("coreai").lint(tmp_path / "a.aimodel")] == found


def test_a_file_is_the_same_every_time(run: Path, small_student: Path, tmp_path: Path) -> None:
    """In another process, whose seeds of hashes are others."""
    out = tmp_path / "again"
    code = (
        "from pathlib import Path; from pocketfocus.export.stage import Export, export_run; "
        f"export_run(Path({str(small_student)!r}), Export(Path({str(out)!r}), ['coreai'], "
        "['int4']))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert sha256(out / FILES[3]) == artifact(run, "int4").sha256


def test_palettes(small_student: Path, tmp_path: Path, pairs: Pairs, eager: list[Tensor]) -> None:
    recipe = tmp_path / "palettes.yaml"
    recipe.write_text(
        "{name: palettes, min_psnr_db: 30, rules: [{bits: 4, form: palette, granularity: 8}]}"
    )
    manifest = export_run(
        small_student, Export(tmp_path / "out", ["coreai"], [str(recipe)]), log=lambda line: None
    )
    (found,) = manifest.artifacts
    rows = found.applied["layers"].values()
    assert any((row["bits"], row["form"], row["granularity"]) == (4, "palette", 8) for row in rows)
    (photo, position), parent = pairs[0], eager[0]
    model = open_file(tmp_path / "out" / found.name)
    assert psnr(model(photo, one_hot(position))[0], parent) >= 30


def test_the_device_checks_assets_and_leaves_the_rest_to_the_host(run: Path) -> None:
    device = get_device("coreai-check")
    assert device.why_not("coreai") is None
    assert origin(device, "coreai").runtime.endswith("(interpreter)")
    student = load_student(run / "student")
    photo, position = torch.zeros(1, 3, 64, 64), np.eye(9, dtype=np.float32)[:, None]
    inputs = (photo.numpy()[None], position)
    outputs = device.run(
        Job(str(run / FILES[0]), "coreai", inputs, [(0, 6)], want_outputs=True)
    ).outputs
    assert outputs is not None
    with torch.no_grad():
        assert psnr(torch.from_numpy(outputs[0][0]), student.stack(photo, one_hot(6))) >= 80


def test_what_cannot_be_done_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not show what its layers give"):
        locate_fault(run, FILES[0])
    broken = tmp_path / "broken.aimodel"
    shutil.copytree(run / FILES[0], broken)
    (broken / "main.mlirb").write_bytes(b"no")
    with pytest.raises(UserError, match="is no Core AI asset that loads"):
        open_file(broken)
    if get_target("coreai").cannot_run() is not None:
        with pytest.raises(UserError, match="Core AI is part of macOS 27 and later"):
            open_model(str(run / FILES[0]))


def test_verify_gates_assets_and_bench_does_not_time_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Off a Mac: gated by the check's device, never measured by the host."""
    if get_target("coreai").cannot_run() is None:
        pytest.skip("Core AI itself executes them here")
    from pocketfocus.benchmarks.latency import Bench, bench_run
    from pocketfocus.benchmarks.verify import Verification, verify_run
    from pocketfocus.mobile_harness.devices import fallbacks

    folder = shutil.copytree(run, tmp_path / "run")
    how = Verification(positions=(4,), fallbacks=fallbacks("host"))
    with one_worker():
        verified = verify_run(folder, get_device("host"), how)
        timed = bench_run(folder, get_device("host"), Bench(None, runs=1, warmup=0))
    rows = [row for row in verified if row.target == "coreai"]
    assert {row.device for row in rows} == {"coreai-check"}
    assert [row.status for row in rows if row.psnr_db] == ["pass"] * 2 * len(FILES)
    found = [row for row in timed if row.target == "coreai"]
    assert len(found) == len(FILES)
    assert all(row.status == "not-run" and row.p50_ms is None for row in found)
    assert all("macOS 27" in row.why for row in found)
    assert main(["bench", str(folder), "--device", "coreai-check"]) == 2
    assert "its times are no latencies" in capsys.readouterr().err
