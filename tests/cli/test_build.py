"""`build` end to end with a tiny reference and student: real files, really executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.benchmarks import latency
from pocketfocus.cli import build, main
from pocketfocus.mobile_harness.device import JobError
from pocketfocus.mobile_harness.host import Host
from pocketfocus.photos.firstlook import GAP, student_of
from pocketfocus.photos.images import load_photo
from pocketfocus.quantize.recipes import RECIPES
from pocketfocus.run.constants import RUNS
from pocketfocus.run.files import read_json, sha256, write_json
from pocketfocus.run.manifest import load_manifest
from tests.conftest import one_worker
from tests.photos.test_images import P3_TO_XYZ, rgb_profile

ARTIFACT, RENDER = "onnx/student-fp32.onnx", "onnx/render-fp32.onnx"
PAIR = "onnx/nine-frames-fp32"


@pytest.fixture(scope="module")
def command(
    small_reference: Path, small_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """A `build` that takes seconds."""
    out = tmp_path_factory.mktemp("run")
    words = ["--reference", str(small_reference), "--student", str(small_student)]
    words += ["--distill-minutes", "0", "--targets", "onnx", "--precisions", "fp32"]
    return ["build", *words, "--out", str(out)]


@pytest.fixture(scope="module")
def run(command: Sequence[str]) -> Path:
    """The folder of a finished build."""
    with pytest.MonkeyPatch.context() as patch, one_worker():
        shrink(patch)
        assert main(command) == 0
    return Path(command[-1])


def shrink(patch: pytest.MonkeyPatch) -> None:
    """One small scene from one position is evaluated, and files are timed in one short round."""
    patch.setattr(build, "SCENES", 1)
    patch.setattr(build, "INPUTS", (4,))
    patch.setattr(build, "SIZE", (64, 64))
    patch.setattr(latency, "ROUND_RUNS", RUNS)
    for budget in ("ROUND_BUDGET_S", "FRAMES_BUDGET_S"):
        patch.setattr(latency, budget, 0.2)


def test_every_stage_wrote_its_file(run: Path) -> None:
    (artifact,) = load_manifest(run).artifacts
    assert (artifact.name, artifact.status) == (ARTIFACT, "written")
    passed = {row["artifact"]: row["status"] for row in read_json(run / "verify.json")["rows"]}
    assert passed == {"student": "pass", ARTIFACT: "pass", RENDER: "pass"}
    timed = {row["artifact"]: row["p50_ms"] for row in read_json(run / "bench.json")["rows"]}
    assert timed.keys() - {"reference@25"} == {"reference", "student", ARTIFACT, RENDER, PAIR}
    assert all(ms > 0 for ms in timed.values())
    scored = {
        row["model"] for row in read_json(run / "evaluate.json")["rows"] if "mean_psnr_db" in row
    }
    assert scored == {"reference", "student", ARTIFACT, "copy", "blur"}
    assert Image.open(run / "first.jpg").size == (1369, 300)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert ARTIFACT in page and RENDER in page
    assert student_of(run / "first.jpg") == load_manifest(run).student_sha256
    assert "focused far</figcaption>" in page


def test_a_second_build_skips_every_stage(
    run: Path,
    command: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shrink(monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out == f"report: {run / 'report.html'}\n"
    stages = [line.partition(":")[0] for line in err.splitlines() if "skipped" in line]
    assert stages == ["look", "distill", "export", "verify", "bench", "evaluate", "report"]
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_a_gate_that_fails_is_named_and_exits_with_1(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = RECIPES["fp32"].model_copy(update={"min_psnr_db": 250.0})
    monkeypatch.setitem(RECIPES, "fp32", strict)
    kept = {name: (run / name).read_bytes() for name in ("verify.json", "stacks.npz")}
    with one_worker():
        assert main(["verify", str(run)]) == 1
    err = capsys.readouterr().err
    assert f"gate failed: {ARTIFACT}, fp32 file, executed: " in err
    assert "250 dB are needed" in err
    for name, content in kept.items():
        (run / name).write_bytes(content)


def test_the_first_look_is_in_the_photos_colours(small_student: Path, tmp_path: Path) -> None:
    """It is sRGB, and the photo need not be."""
    photo, out = tmp_path / "photo.png", tmp_path / "run"
    out.mkdir()
    profile = rgb_profile(P3_TO_XYZ, 2.2)
    Image.new("RGB", (90, 60), (190, 110, 90)).save(photo, icc_profile=profile)
    how = (0.0, False, ("onnx",), ("fp32",), 0)
    build._look(build.Settings(out, "default", small_student, [photo], *how))
    look = np.asarray(Image.open(out / "first.jpg")).astype(float)
    assert student_of(out / "first.jpg") == sha256(small_student)
    shown = look[:, 90 + GAP : 180 + GAP].mean((0, 1))
    assert np.abs(shown - np.asarray(load_photo(photo)).mean((0, 1))).max() < 3
    assert np.abs(shown - (190, 110, 90)).max() > 8


@pytest.mark.parametrize("stage", ["verify", "bench"])
def test_a_file_whose_hash_is_wrong_is_reported_and_not_used(
    run: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / ARTIFACT
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    try:
        assert main([stage, str(run)]) == 2
    finally:
        file.write_bytes(content)
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert "has SHA-256" in err[0]
    assert "run export again" in err[0]


def test_the_stages_key_holds_every_setting(small_student: Path, tmp_path: Path) -> None:
    settings = build.Settings(
        out=tmp_path,
        reference="default",
        student=small_student,
        photos=None,
        minutes=1.0,
        from_scratch=False,
        targets=("onnx",),
        precisions=("fp32",),
        seed=0,
    )

    def changed(**changes: object) -> list[str]:
        other = build.stages(replace(settings, **changes))  # type: ignore[arg-type]
        pairs = zip(build.stages(settings), other, strict=True)
        ran = [old.name for old, new in pairs if old.inputs() != new.inputs()]
        keys = [build._distilled_of(each) for each in (settings, replace(settings, **changes))]  # type: ignore[arg-type]
        assert (keys[0] != keys[1]) == ("distill" in ran), "one begun with these goes on"
        return ran

    assert changed() == []
    assert changed(reference="learn2refocus") == ["distill", "bench", "evaluate"]
    assert changed(student=tmp_path) == ["look", "distill"]
    assert changed(minutes=2.0) == ["distill"]
    assert changed(from_scratch=True) == ["distill"]
    assert changed(seed=1) == ["distill"]
    assert changed(targets=("coreml",)) == ["export"]
    assert changed(precisions=("int8",)) == ["export"]
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"pixels")
    assert changed(photos=[photo]) == ["look", "distill", "export", "verify"]


def test_what_was_not_measured_is_told_and_tried_again(
    run: Path,
    command: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A process that dies once, as of a full disk or a lack of memory, is no result."""
    shrink(monkeypatch)
    record = run / "stages.json"
    stages = {n: s for n, s in read_json(record)["stages"].items() if n not in ("bench", "report")}
    write_json(record, {"stages": stages})
    with monkeypatch.context() as patch:
        patch.setattr(Host, "run", died)
        assert main(list(command)) == 2
        assert main(["bench", str(run), "--runs", "1"]) == 2
        assert main(["verify", str(run)]) == 2
    said = capsys.readouterr().err
    assert "bench is not finished: reference: died of SIGBUS; the same command tries" in said
    assert "not verified: onnx/student-fp32.onnx, fp32 file, executed: died of SIGBUS" in said
    assert "gate failed" not in said
    with one_worker():
        assert main(list(command)) == 0
    assert "bench: running" in capsys.readouterr().err
    assert {row["status"] for row in read_json(run / "bench.json")["rows"]} == {"measured"}


def died(*_: object) -> None:
    raise JobError("died of SIGBUS")
