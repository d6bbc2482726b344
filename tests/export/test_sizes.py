"""Files for photos of several sizes: one set of weights, a function a size, the same pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pocketfocus.benchmarks.gates import parity_rows
from pocketfocus.benchmarks.verify import verify_run
from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.export.open import open_model
from pocketfocus.export.student import other_sizes, shapes
from pocketfocus.export.targets import Sizes, get_target
from pocketfocus.mobile_harness.arm64.worker import run_pte
from pocketfocus.mobile_harness.host import Host
from pocketfocus.models.student import build_student, load_student
from pocketfocus.quantize.calibration import fitted
from pocketfocus.quantize.recipes import RECIPES
from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Artifact, Function, load_manifest
from pocketfocus.run.metrics import psnr
from tests.conftest import SIZES

OWN: Size = (64, 64)
FILES = {"executorch": ("int8",), "coreml": ("int8",), "onnx": ("int8",)}

Call = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def artifacts(sized: Path) -> dict[str, Artifact]:
    return {artifact.name: artifact for artifact in load_manifest(sized).artifacts}


def opened(path: Path, target: str) -> Call:
    """The file by its runtime, or by the MIL check."""
    if target == "coreml":
        from pocketfocus.mobile_harness.mil import program_opener

        return program_opener()(str(path), 1)
    return get_target(target).open(path, 1)


def on_arm64(path: Path) -> Call:
    """A .pte as the emulated Python calls it, by this host's runtime."""

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        job = {"artifact": str(path), "threads": 1, "calls": [(0, 0)], "want_outputs": True}
        tables = {str(k): tensor[None].numpy() for k, tensor in enumerate(inputs)}
        _, made = run_pte(job, tables, lambda text: None)
        return tuple(torch.from_numpy(output[0]) for output in made.values())

    return call


def name_of(target: str, precision: str) -> str:
    return f"{target}/student-{precision}{get_target(target).suffix}"


@pytest.mark.parametrize(
    ("target", "precision", "emulated"),
    [*((t, p, False) for t, names in FILES.items() for p in names), ("executorch", "int8", True)],
)
def test_every_size_is_the_student(
    sized: Path, small_student: Path, target: str, precision: str, emulated: bool
) -> None:
    path, student = sized / name_of(target, precision), load_student(small_student)
    call = on_arm64(path) if emulated else opened(path, target)
    photo = Image.fromarray(held_out_photos()[0])
    for size in (OWN, *SIZES):
        for position in (1, 6):
            inputs = fitted(photo, size), one_hot(position)
            with torch.no_grad():
                expected = student(*inputs)
            found = call(*inputs)
            assert [x.shape for x in found] == [x.shape for x in expected]
            for one, other in zip(found[:3], expected[:3], strict=True):
                assert psnr(one, other) >= RECIPES[precision].min_psnr_db
            assert psnr(found[0].flip(0), expected[0]) < RECIPES[precision].min_psnr_db


def test_what_a_file_takes_is_in_it_and_in_the_manifest(
    sized: Path, artifacts: dict[str, Artifact]
) -> None:
    assert load_manifest(sized).sizes == (OWN, *SIZES)
    for name in ("executorch/student-int8.pte", "coreml/student-int8.mlpackage"):
        found = get_target(artifacts[name].target).sizes(sized / name)
        assert set(found.listed) == {OWN, *SIZES}
        assert (found.listed[0], found.multiple) == (OWN, 0)
        main = artifacts[name].functions[0].name
        assert artifacts[name].functions == (
            Function(main, OWN), Function(f"{main}_80x48", (48, 80)),
            Function(f"{main}_48x80", (80, 48)),
        )  # fmt: skip
    name = "onnx/student-int8.onnx"
    assert get_target("onnx").sizes(sized / name) == Sizes((OWN,), 8)
    assert (artifacts[name].functions, artifacts[name].multiple) == ((), 8)


def test_a_delegate_takes_every_size_whole(artifacts: dict[str, Artifact]) -> None:
    delegation = artifacts["executorch/student-int8.pte"].delegation
    assert delegation is not None
    assert (delegation.calls, delegation.share) == (1, 1.0)


def test_sizes_share_weights(sized: Path) -> None:
    """What looks like weights, bytes of many values, stands in the file once."""
    content = (sized / "executorch/student-int8.pte").read_bytes()
    pieces = [content[at : at + 32] for at in range(0, len(content) - 32, 64)]
    pieces = [piece for piece in pieces if len(set(piece)) > 16]
    repeated = sum(content.count(piece) > 1 for piece in pieces)
    assert len(pieces) * 64 > sum(p.numel() for p in load_student(sized / "student").parameters())
    assert repeated < len(pieces) / 10


def test_a_photo_on_its_side_is_not_turned_nor_squashed(sized: Path) -> None:
    for name in ("executorch/student-int8.pte", "onnx/student-int8.onnx"):
        analyser = open_model(str(sized / name)).analyser
        assert analyser is not None
        fit = analyser.fit((1000, 600))
        assert not fit.transposed
        assert fit.size[0] / fit.size[1] == pytest.approx(10 / 6, rel=0.03)


def test_the_usual_shapes() -> None:
    assert shapes((320, 448), 16) == [(448, 320), (384, 384)]
    assert other_sizes(build_student("micro"), None) == []


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((60, 64), "--sizes 64x60: this student takes sides that are multiples of 8"),
        ((8, 64), "16 at least"),
        ((96, 96), "more than 2 times the pixels of this student's 64x64"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size: Size, message: str) -> None:
    with pytest.raises(UserError, match=message):
        other_sizes(build_student("micro"), [size])


def test_verify_judges_every_size_and_drawn_pictures(sized: Path, tmp_path: Path) -> None:
    name = "executorch/student-int8.pte"
    copied = tmp_path / "run"
    for part in ("student", name):
        (copied / part).parent.mkdir(parents=True, exist_ok=True)
        source = sized / part
        shutil.copytree(source, copied / part) if source.is_dir() else shutil.copy2(
            source, copied / part
        )
    manifest = load_manifest(sized)
    kept = [artifact for artifact in manifest.artifacts if artifact.name == name]
    replace(manifest, artifacts=kept, render=None).save(copied)
    rows = verify_run(copied, Host())
    gates = {row.gate: row for row in rows if row.artifact == name}
    assert {row.status for row in gates.values()} == {"pass"}
    others = [gate for gate in gates if gate.startswith("photos of ")]
    assert others == [
        "photos of 80x48, int8 file, executed",
        "photos of 48x80, int8 file, executed",
    ]
    drawn = gates["drawn pictures, int8 file, executed"]
    assert "worst is " in drawn.why
    assert drawn.threshold_db == 30
    assert [row.gate for row in parity_rows(list(gates.values()))] == ["int8 file, executed"]
