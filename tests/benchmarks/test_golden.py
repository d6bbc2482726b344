"""Golden bundles: written, carried elsewhere, replayed; and what a replay must not let pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pocketfocus.benchmarks import lint
from pocketfocus.benchmarks.gates import unjudged
from pocketfocus.benchmarks.golden import replay, write_golden
from pocketfocus.cli import main
from pocketfocus.data.optics import one_hot
from pocketfocus.mobile_harness import devices
from pocketfocus.mobile_harness.device import Job, Result
from pocketfocus.mobile_harness.options import Absent
from pocketfocus.models.student import load_student
from pocketfocus.run.errors import UserError
from pocketfocus.run.results import GateRow
from pocketfocus.run.rows import read_rows

pytestmark = pytest.mark.usefixtures("one_process")

PTE, PACKAGE = "executorch/student-int8.pte", "coreml/student-fp16.mlpackage"


class Runs:
    """A device that runs the student, a little off, in place of every file but Core ML's."""

    name = "runs"

    def __init__(self, student: Path, off: float = 0.0) -> None:
        self.student, self.off = load_student(student), off

    def describe(self) -> dict[str, str]:
        return {}

    def why_not(self, target: str) -> str | None:
        return "Core ML needs macOS" if target == "coreml" else None

    def run(self, job: Job) -> Result:
        photos, positions = map(torch.from_numpy, job.inputs)

        with torch.inference_mode():
            made = [self.student(photos[n], positions[position]) for n, position in job.calls]
        stacks, *others = (torch.stack(each).numpy() for each in zip(*made, strict=True))
        return Result((stacks + np.float32(self.off), *others), 1.0, 1.0, (), 1.0, 1)


@pytest.fixture
def bundle(small_student: Path, tmp_path: Path, make_run: object) -> Path:
    """Of one file that was executed and one that could not be, moved after it was written."""
    make_run(tmp_path / "run", small_student, [PTE, PACKAGE])  # type: ignore[operator]
    written = write_golden(tmp_path / "run", tmp_path / "made", [Runs(small_student)])
    assert written == tmp_path / "made" / "golden.json"
    return Path(shutil.move(tmp_path / "made", tmp_path / "elsewhere"))


def test_what_is_no_bundle_is_not_replaced(
    small_student: Path, tmp_path: Path, make_run: Callable[..., None]
) -> None:
    make_run(tmp_path, small_student, [PTE])
    before = sorted(tmp_path.rglob("*"))
    for place in (tmp_path, tmp_path / "executorch"):
        with pytest.raises(
            UserError, match="holds something else: name a new folder with --golden"
        ):
            write_golden(tmp_path, place, [Runs(small_student)])
    assert sorted(tmp_path.rglob("*")) == before
    golden = tmp_path / "golden"
    for _ in range(2):  # an earlier one is
        write_golden(tmp_path, golden, [Runs(small_student)])
        replay(golden, [Runs(small_student)])
    for name in ("README.md", "executorch/notes.txt", "student/config.json"):  # an app's, say
        (golden / name).parent.mkdir(exist_ok=True)
        (golden / name).write_text("years of work")
        with pytest.raises(UserError, match=rf"{name} was not written by.*--golden, or move"):
            write_golden(tmp_path, golden, [Runs(small_student)])
        assert (golden / name).read_text() == "years of work"
        (golden / name).unlink()
    (golden / "golden.json").write_text("{}")  # it no longer says what is its own
    with pytest.raises(UserError, match="was not written by"):
        write_golden(tmp_path, golden, [Runs(small_student)])


def test_a_replay_where_all_is_well(bundle: Path, small_student: Path) -> None:
    rows = replay(bundle, [Runs(small_student)])
    assert read_rows(bundle / "replay.json", GateRow) == rows
    found = [(r.artifact, r.gate, r.threshold_db, r.status) for r in rows]
    assert found == [
        (PTE, "int8 file, executed", 40.0, "pass"),
        (PTE, "same file, replayed", 45.0, "pass"),
        (PTE, "canary", 35.0, "pass"),
        (PACKAGE, "fp16 file, executed", 50.0, "not-run"),
        (PACKAGE, "canary", 35.0, "not-run"),
    ]
    assert 65 < (rows[1].psnr_db or 0) < 200  # float16 keeps this much


class Spoils(Runs):
    """One that makes something else of one output."""

    def __init__(self, student: Path, number: int, value: float) -> None:
        super().__init__(student)
        self.number, self.value = number, value

    def run(self, job: Job) -> Result:
        result = super().run(job)
        outputs = list(result.outputs or ())
        outputs[self.number] = np.full_like(outputs[self.number], self.value)
        return replace(result, outputs=tuple(outputs))


@pytest.mark.parametrize(
    ("number", "value", "statuses"),
    [
        (1, 0.5, ["fail", "pass", "pass"]),
        (2, 5.0, ["fail", "pass", "pass"]),
        *((number, np.nan, ["fail"] * 3) for number in range(5)),
    ],
    ids=["sharp", "detail", *(f"NaN in output {n}" for n in range(5))],
)
def test_all_that_pictures_are_made_of_is_replayed(
    number: int, value: float, statuses: list[str], bundle: Path, small_student: Path
) -> None:
    rows = replay(bundle, [Spoils(small_student, number, value)])
    assert [row.status for row in rows if row.artifact == PTE] == statuses


def test_an_older_bundle_has_the_stack_alone(bundle: Path, small_student: Path) -> None:
    content = json.loads((bundle / "golden.json").read_text())
    for name in ("sharp", "detail"):
        (bundle / content.pop(name)["file"]).unlink()
    (bundle / "golden.json").write_text(json.dumps(content))
    for device in (Runs(small_student), Spoils(small_student, 1, 0.5)):
        found = [row.status for row in replay(bundle, [device]) if row.artifact == PTE]
        assert found == ["pass"] * 3


def test_every_phone_replays(bundle: Path, small_student: Path) -> None:
    right, wrong = Runs(small_student), Runs(small_student, off=0.1)
    wrong.name = "android:TWO"
    rows = replay(bundle, [right, wrong, Absent("android:THREE", "unplugged")])
    for name, statuses in (
        ("runs", {"pass", "not-run"}),
        ("android:TWO", {"fail", "not-run"}),
        ("android:THREE", {"not-run"}),
    ):
        own = [row for row in rows if row.device == name]
        assert len(own) == 5 and {row.status for row in own} == statuses
    assert unjudged(rows, each_device=True) == [f"{PTE} and 1 more on android:THREE: unplugged"]


@pytest.mark.parametrize("words", [("RUN",), ("--replay", "BUNDLE")])
def test_a_phone_that_is_not_there_is_no_success(
    words: tuple[str, ...],
    bundle: Path,
    small_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = (Runs(small_student), Absent("android:TWO", "it is unplugged"))
    monkeypatch.setattr(devices, "get_devices", lambda *_: there)
    named = {"RUN": tmp_path / "run", "BUNDLE": bundle}
    given = [str(named.get(word, word)) for word in words]
    monkeypatch.setattr(lint, "lint_of_student", lambda _: "")  # its files are none
    assert main(["verify", *given, "--device", "android:ONE,TWO"]) == 2
    assert "on android:TWO: it is unplugged; run it again" in capsys.readouterr().err


def test_a_bundle_is_made_on_one_phone(
    bundle: Path, small_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = (Runs(small_student), Absent("android:TWO", "it is unplugged"))
    monkeypatch.setattr(devices, "get_devices", lambda *_: there)
    words = [str(tmp_path / "run"), "--golden", str(tmp_path / "new")]
    assert main(["verify", *words, "--device", "android:all"]) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("db", "statuses"), [(44.0, ["pass", "fail"]), (39.0, ["fail", "fail"])])
def test_a_replay_that_differs(
    db: float, statuses: list[str], bundle: Path, small_student: Path
) -> None:
    rows = replay(bundle, [Runs(small_student, off=2 / 10 ** (db / 20))])
    assert [row.status for row in rows[:2]] == statuses


def test_tensors_are_raw_and_described(bundle: Path, small_student: Path) -> None:
    golden = json.loads((bundle / "golden.json").read_text())
    pair, student = golden["inputs"][1], golden["student"]
    photo = np.fromfile(bundle / pair["photo"]["file"], "<f4").reshape(pair["photo"]["shape"])
    position = np.fromfile(bundle / pair["position"]["file"], "<f4")
    assert position.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    stacks = np.fromfile(bundle / student["file"], "<f2").reshape(student["shape"])
    with torch.inference_mode():
        truth = load_student(small_student).stack(torch.from_numpy(photo), one_hot(4)).numpy()
    np.testing.assert_allclose(stacks[1], truth, atol=1e-3)


@pytest.mark.parametrize("name", [PTE, "student.f16", "photo.f32"])
def test_damage_is_named_and_never_used(name: str, bundle: Path, small_student: Path) -> None:
    with open(bundle / name, "r+b") as handle:
        handle.write(b"\xff\xff")
    with pytest.raises(UserError, match=rf"{Path(name).name} is not the file"):
        replay(bundle, [Runs(small_student)])
    assert not (bundle / "replay.json").exists()


@pytest.mark.parametrize(
    ("place", "wrong", "said"),
    [
        (("artifacts", 0), {"student_db": "high"}, r"artifacts\.0\.student_db: Input should be"),
        (("artifacts", 0), {"size": 1}, r"artifacts\.0\.size: Extra inputs"),
        (("student",), {"dtype": "float8"}, r"student\.dtype: Input should be 'float32',"),
        ((), {"inputs": []}, "inputs: Tuple should have at least 1 item"),
        ((), {"student": ...}, "student: Field required"),
    ],
)
def test_a_bundle_that_is_wrong_is_one_line(
    place: tuple[str | int, ...], wrong: dict[str, object], said: str, bundle: Path
) -> None:
    content = json.loads((bundle / "golden.json").read_text())
    part = content
    for step in place:
        part = part[step]
    for name, value in wrong.items():
        part.pop(name, None)
        part |= {} if value is ... else {name: value}
    (bundle / "golden.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"golden\.json, {said}.*: write the bundle again$"):
        replay(bundle, [])
    assert not (bundle / "replay.json").exists()


def test_a_file_that_misses_its_gate_makes_no_bundle(
    small_student: Path, tmp_path: Path, make_run: object
) -> None:
    make_run(tmp_path / "run", small_student, [PTE])  # type: ignore[operator]
    with pytest.raises(UserError, match="misses its own gate"):
        write_golden(tmp_path / "run", tmp_path / "made", [Runs(small_student, off=0.1)])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the folder of a run, or a golden bundle"),
        (["run", "--replay", "x"], "name the folder of a run, or a golden bundle"),
        (["run", "--golden", "x", "--replay", "y"], "three tasks"),
        (["--replay", "absent"], "golden.json is missing"),
    ],
)
def test_command_lines(arguments: list[str], message: str) -> None:
    from pocketfocus.cli.app import app

    result = CliRunner().invoke(app, ["verify", *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


@pytest.mark.parametrize("name", ["../stolen.pte", "/tmp/stolen.pte", "a/../../stolen.pte"])
def test_names_lead_nowhere_else(
    name: str, small_student: Path, bundle: Path, tmp_path: Path, make_run: object
) -> None:
    """An honest hash does not help: neither is such a file copied out, nor is it replayed."""
    from pocketfocus.run.manifest import MANIFEST_FILE

    run = tmp_path / "run"
    manifest = json.loads((run / MANIFEST_FILE).read_text())
    shutil.copy(run / PTE, tmp_path / "stolen.pte")
    manifest["artifacts"][0]["name"] = name
    (run / MANIFEST_FILE).write_text(json.dumps(manifest))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="is no path below"):
        write_golden(run, tmp_path / "deep" / "made", [Runs(small_student)])
    assert sorted(tmp_path.rglob("*")) == before

    for place in (("artifacts", 0, "name"), ("inputs", 0, "photo", "file")):
        golden = json.loads((bundle / "golden.json").read_text())
        part = golden
        for step in place[:-1]:
            part = part[step]
        part[place[-1]] = name
        other = tmp_path / "other"
        shutil.copytree(bundle, other, dirs_exist_ok=True)
        (other / "golden.json").write_text(json.dumps(golden))
        with pytest.raises(UserError, match="is no path below"):
            replay(other, [Runs(small_student)])


@pytest.mark.parametrize("shape", [[1, 3, 64, -64], [1, 3, 64, 0], [1, 3, 64, 63], [64], []])
def test_shapes_that_do_not_fit_are_named(shape: list[int], bundle: Path) -> None:
    golden = json.loads((bundle / "golden.json").read_text())
    golden["inputs"][0]["photo"]["shape"] = shape
    (bundle / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(UserError, match="write the bundle again"):
        replay(bundle, [])
