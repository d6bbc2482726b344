"""Golden bundles at all sizes of a run's files: written, and replayed here and on a phone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketfocus.benchmarks.golden import read_golden, replay, write_golden
from pocketfocus.data.optics import one_hot
from pocketfocus.export.coreml.write import tensors
from pocketfocus.mobile_harness.device import Device, Job, Result
from pocketfocus.mobile_harness.devices import get_device
from pocketfocus.mobile_harness.host import Host
from pocketfocus.mobile_harness.ios import iphone
from pocketfocus.mobile_harness.options import Options
from pocketfocus.models.student import load_student
from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.results import GateRow
from tests.conftest import SIZES
from tests.mobile_harness.android import scripted_adb

pytestmark = pytest.mark.usefixtures("one_process")

OWN: Size = (64, 64)
PTE, PACKAGE, ONNX = (
    "executorch/student-int8.pte",
    "coreml/student-int8.mlpackage",
    "onnx/student-int8.onnx",
)
GATES = ("int8 file, executed", "same file, replayed", "canary")


@pytest.fixture(scope="module")
def bundle(sized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three files for photos of three sizes, of which one cannot be executed here."""
    out = tmp_path_factory.mktemp("golden") / "bundle"
    write_golden(sized, out, [Host()])
    return out


def copied(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "bundle"))


def statuses(rows: Sequence[GateRow], file: str) -> dict[str, str]:
    return {row.gate: row.status for row in rows if row.artifact == file}


def test_a_bundle_tells_what_to_call_at_each_size(bundle: Path) -> None:
    golden = read_golden(bundle / "golden.json")
    assert [other.size for other in golden.others] == [*SIZES]
    files = {file.name: file for file in golden.artifacts}
    names = {name: [(each.size, each.name) for each in files[name].others] for name in files}
    assert names[PTE] == [((48, 80), "forward_80x48"), ((80, 48), "forward_48x80")]
    assert names[PACKAGE] == [((48, 80), "main_80x48"), ((80, 48), "main_48x80")]
    assert names[ONNX] == [((48, 80), ""), ((80, 48), "")]
    made = {name: [each.expected is not None for each in files[name].others] for name in files}
    assert made == {PTE: [True] * 2, ONNX: [True] * 2, PACKAGE: [False] * 2}
    for each in golden.canary.tries:
        assert [(other.size, other.name) for other in each.others] == names[each.file]


def test_photos_and_stacks_of_other_sizes_are_raw_and_small(
    bundle: Path, small_student: Path
) -> None:
    golden, student = read_golden(bundle / "golden.json"), load_student(small_student)
    for other, sized in zip(golden.others, golden.canary.sizes, strict=True):
        assert (other.size, other.photo) == (sized.size, sized.photo)
        pixels = np.fromfile(bundle / other.photo.file, "u1").reshape(1, 3, *other.size)
        photo = torch.from_numpy(pixels / 127.5 - 1).float()
        with torch.inference_mode():
            truth = student.stack(photo, one_hot(golden.canary.position)).numpy()
        stack = np.fromfile(bundle / other.student.file, "<f2").reshape(9, 3, *other.size)
        np.testing.assert_allclose(stack, truth, atol=1e-3)
        seen = np.fromfile(bundle / sized.expected.file, "u1").reshape(sized.expected.shape)
        np.testing.assert_allclose(seen / 127.5 - 1, truth[..., ::8, ::8], atol=0.005)
    for file in golden.artifacts:
        for each in file.others:
            assert each.expected is None or each.expected.shape[:3] == (1, 9, 3)
            assert each.expected is None or max(each.expected.shape[3:]) <= 10


def test_a_replay_is_of_every_size(bundle: Path, tmp_path: Path) -> None:
    here = [Host(), get_device("mil-check")]
    rows = replay(copied(bundle, tmp_path), here[:1], here[1:])
    sizes = ("", "photos of 80x48, ", "photos of 48x80, ")
    for name in (PTE, ONNX):
        wanted = {f"{size}{gate}": "pass" for size in sizes for gate in GATES}
        assert statuses(rows, name) == wanted
    checked = [gate for gate in statuses(rows, PACKAGE) if gate.endswith("MIL check")]
    assert checked == [f"{size}int8 file, MIL check" for size in sizes]
    assert {row.status for row in rows} == {"pass"}
    alone = statuses(replay(bundle, [Host()]), PACKAGE)
    assert alone == {f"{size}{gate}": "not-run" for size in sizes for gate in GATES[::2]}


class OffAtOneSize(Host):
    """This host, which computes wrongly with photos of one size."""

    def run(self, job: Job) -> Result:
        result = super().run(job)
        assert result.outputs is not None
        if job.inputs[0].shape[-2:] != SIZES[1]:
            return result
        stacks, *others = result.outputs
        return replace(result, outputs=(stacks[:, ::-1], *others))


def test_what_is_wrong_at_one_size_alone_fails_there(
    bundle: Path, sized: Path, tmp_path: Path
) -> None:
    found = statuses(replay(copied(bundle, tmp_path), [OffAtOneSize()]), PTE)
    failed = [gate for gate, status in found.items() if status == "fail"]
    assert failed == [f"photos of 48x80, {gate}" for gate in GATES]
    with pytest.raises(UserError, match=r"int8\.pte misses its own gate at 48x80"):
        write_golden(sized, tmp_path / "made", [OffAtOneSize()])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("script", "status"), [({}, "pass"), ({"methods": False}, "error")])
def test_a_phone_calls_the_method_of_each_size(
    script: dict[str, bool],
    status: str,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The scripted phone takes the flags of ExecuTorch's runner, or those of an older one."""
    tools = scripted_adb.install(tmp_path / "phone", None, **script)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    runner = scripted_adb.elf(tmp_path / "executor_runner")
    phone: Device = get_device("android", Options(runner=runner))
    rows = replay(copied(bundle, tmp_path), [phone])
    found = statuses(rows, PTE)
    assert {found[gate] for gate in GATES} == {"pass"}
    others = {s for gate, s in found.items() if gate.startswith("photos of")}
    assert others == {status} and len(found) == 9
    for row in rows:
        if row.artifact == PTE and row.status == "error":
            assert "calls a file's usual size alone; build a newer one" in row.why
        if row.artifact == ONNX:
            assert row.status == "not-run" and row.why.startswith("executor_runner executes .pte")


class OneSize(Host):
    """A device of a kind that is called with the usual size alone."""

    def __init__(self) -> None:
        super().__init__(name="browser")


def test_what_calls_no_other_sizes_says_so(bundle: Path, tmp_path: Path) -> None:
    rows = replay(copied(bundle, tmp_path), [OneSize()])
    found = [row for row in rows if row.artifact == ONNX and row.gate.startswith("photos of")]
    assert {(row.status, row.why) for row in found} == {("not-run", "browser calls no other sizes")}
    assert {row.status for row in rows if row.artifact == ONNX and row not in found} == {"pass"}


def test_a_bundle_without_a_photo_of_a_size_is_one_line(bundle: Path, tmp_path: Path) -> None:
    other = copied(bundle, tmp_path)
    content = json.loads((other / "golden.json").read_text())
    del content["others"][1]
    (other / "golden.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has a file for 48x80, and no such photo: write"):
        replay(other, [Host()])


def test_a_bundle_of_before_is_of_the_usual_size(bundle: Path, tmp_path: Path) -> None:
    other = copied(bundle, tmp_path)
    content = json.loads((other / "golden.json").read_text())
    del content["others"], content["canary"]["sizes"]
    for part in (*content["artifacts"], *content["canary"]["tries"]):
        del part["others"]
    (other / "golden.json").write_text(json.dumps(content))
    rows = replay(other, [Host()])
    assert statuses(rows, PTE) == dict.fromkeys(GATES, "pass")


def test_an_iphone_is_asked_for_the_function_of_each_size(bundle: Path) -> None:
    package = bundle / PACKAGE
    given, made = tensors(package)
    assert given == ["photo", "position"]
    assert made == ["stack", "sharp", "detail", "dioptres", "positions"]
    names = {}
    for size in (OWN, *SIZES):
        photos = np.zeros((1, 1, 3, *size), np.float32)
        names[size] = iphone.function_of(Job(str(package), "coreml", (photos,), [(0,)]))
    assert names == {OWN: "main", SIZES[0]: "main_80x48", SIZES[1]: "main_48x80"}
