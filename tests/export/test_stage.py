"""The stage: what is kept or made again; with the ONNX target, the quickest."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from subprocess import CalledProcessError

import psutil
import pytest
import torch
from PIL import Image

from pocketfocus.cli import main
from pocketfocus.export import onnx, stage
from pocketfocus.export.network import Network, Source
from pocketfocus.export.onnx.write import write
from pocketfocus.export.phases import Phases
from pocketfocus.export.stage import Export, Run, code_hash, export_run, previous
from pocketfocus.export.targets import Options, Target, Written, get_target, get_targets
from pocketfocus.models.student import build_student, load_student, save_student
from pocketfocus.quantize.recipes import RECIPES, Recipe, get_recipe
from pocketfocus.run.cache import PACKAGE, source_hash
from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256, write_json
from pocketfocus.run.manifest import Artifact, Manifest, load_manifest
from pocketfocus.run.processes import CHILD, Work
from tests.conftest import SIZES, Exported


class Lines(list[str]):
    """A log that can be asked."""

    def __call__(self, line: str) -> None:
        self.append(line)

    def of(self, name: str) -> str:
        return next(line for line in self if line.startswith(name))


@pytest.fixture
def copied(run_dir: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return shutil.copytree(run_dir, tmp_path / "run")


def test_unchanged_files_are_kept(run_dir: Path, small_student: Path) -> None:
    log = Lines()
    before = load_manifest(run_dir)
    stamps = {a.name: (run_dir / a.name).stat().st_mtime_ns for a in before.files}
    again = export_run(
        small_student, Export(run_dir, ["onnx", "coreml", "executorch"], ["int8", "fp32"]), log=log
    )
    assert again == load_manifest(run_dir) == before
    assert {n: (run_dir / n).stat().st_mtime_ns for n in stamps} == stamps
    assert sum("unchanged" in line for line in log) == 6 + 3  # and what renders, of each target


def test_what_renders_is_written_once_a_target(small_student: Path, tmp_path: Path) -> None:
    """Whatever the precisions, and the same for every student: it has no weights."""
    log, name = Lines(), "onnx/render-fp32.onnx"
    first = export_run(small_student, Export(tmp_path, ["onnx"], ["fp16"]), log=log)
    assert [a.name for a in first.artifacts] == ["onnx/student-fp16.onnx"]
    assert first.render is not None
    (written,) = first.render.files
    assert (written.name, written.precision, written.sha256) == (
        name,
        "fp32",
        sha256(tmp_path / name),
    )
    assert written.applied["note"] == "float32 throughout"
    assert written.applied["operators"].keys().isdisjoint({"Cast", "Conv"})
    again = export_run(small_student, Export(tmp_path, ["onnx"], []), log=log)
    assert again.artifacts == first.artifacts and again.render == first.render
    assert f"{name}: unchanged, kept" in log
    save_student(build_student("micro"), tmp_path / "other", half=False)
    other = export_run(tmp_path / "other", Export(tmp_path, ["onnx"], []), log=log)
    assert other.render is not None
    assert [a.sha256 for a in other.render.files] == [written.sha256]


@pytest.mark.parametrize("damage", ["edited", "missing"])
def test_a_damaged_file_is_made_again(copied: Path, damage: str) -> None:
    path = copied / "onnx/student-fp32.onnx"
    good = sha256(path)
    path.write_bytes(b"no") if damage == "edited" else path.unlink()
    log = Lines()
    export_run(None, Export(copied, ["onnx"], ["fp32", "fp16"]), log=log)
    assert sha256(path) == good
    assert "unchanged" not in log.of("onnx/student-fp32.onnx")
    assert "unchanged" in log.of("onnx/student-fp16.onnx")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo that is not among the bundled ones."""
    path = tmp_path / "mine.png"
    Image.effect_mandelbrot((80, 70), (-2, -1, 1, 1), 50).convert("RGB").save(path)
    return path


def test_other_photos_make_calibrated_files_again(copied: Path, photo: Path) -> None:
    log = Lines()
    manifest = export_run(None, Export(copied, ["onnx"], ["fp32", "int8"]), [photo], log)
    assert "unchanged" in log.of("onnx/student-fp32.onnx")
    assert "unchanged" not in log.of("onnx/student-int8.onnx")
    photos, positions = manifest.calibration["photos"], manifest.calibration["positions"]
    assert set(photos[:18]) == {"mine.png"}
    assert all(name.endswith("(drawn)") for name in photos[18:])
    assert positions[:18] == [*range(9), *range(9)]
    assert len(manifest.artifacts) == len(RECIPES) * len(get_targets())


def test_files_that_stay_keep_their_sizes_and_calibration(
    sized: Path, photo: Path, tmp_path: Path
) -> None:
    """The manifest once told those of the last call alone, as of all files."""
    out = shutil.copytree(sized, tmp_path / "run")
    kept = {a.name: a for a in load_manifest(out).artifacts}
    request = Export(out, ["onnx"], ["int8", "fp32"])
    manifest = export_run(None, request, [photo], Lines())
    found = {a.name: a for a in manifest.artifacts}
    assert manifest.sizes == ((64, 64), *SIZES)
    name = "executorch/student-int8.pte"
    assert found[name] == kept[name] and found[name].functions
    used = {a.applied.get("calibration_sha256") for a in manifest.artifacts} - {None}
    ours, theirs = manifest.calibration, manifest.other_calibrations
    assert used == {each["sha256"] for each in (ours, *theirs)} and len(used) == 2
    assert ours["sha256"] == found["onnx/student-int8.onnx"].applied["calibration_sha256"]
    assert "mine.png" in ours["photos"] and "mine.png" not in theirs[0]["photos"]
    assert load_manifest(out) == manifest
    assert load_manifest(sized).calibration and not load_manifest(sized).other_calibrations


def test_what_was_calibrated_with_other_photos_is_told_until_all_is_made_anew(
    exported: Exported, photo: Path
) -> None:
    out = exported(["onnx/student-int8.onnx", "onnx/student-mixed.onnx"])
    one = export_run(None, Export(out, ["onnx"], ["int8"], sizes=SIZES), [photo], Lines())
    assert len(one.other_calibrations) == 1
    again = export_run(None, Export(out, ["onnx"], ["int8", "mixed"]), [photo], Lines())
    assert not again.other_calibrations and again.sizes == ((64, 64),)


def test_versions_are_those_of_the_files_that_stay_too(sized: Path, tmp_path: Path) -> None:
    """Until every file was written by one version."""
    out = shutil.copytree(sized, tmp_path / "run")
    ours = load_manifest(out).tools
    replace(load_manifest(out), tools={**ours, "torch": "1.0", "gone": "2.0"}).save(out)
    for _ in range(2):
        mixed = export_run(None, Export(out, ["onnx"], ["int8"], sizes=SIZES), log=Lines())
        assert mixed.tools == ours | {"torch": f"1.0, {ours['torch']}", "gone": "2.0"}
    everything = Export(out, ["executorch", "coreml", "onnx"], ["int8"], sizes=SIZES)
    assert export_run(None, everything, log=Lines()).tools == ours


def test_files_of_another_student_go(copied: Path, tmp_path: Path) -> None:
    save_student(build_student("micro"), tmp_path / "other", half=False)
    manifest = export_run(tmp_path / "other", Export(copied, ["onnx"], ["fp32"]), log=Lines())
    assert [a.name for a in manifest.artifacts] == ["onnx/student-fp32.onnx"]
    assert not list(copied.glob("*/*.pte"))
    assert not list(copied.glob("*/*.mlpackage"))
    assert [path.name for path in copied.glob("*/render-*")] == ["render-fp32.onnx"]
    assert manifest.student_sha256 == sha256(copied / "student")


def test_a_distilled_student_is_never_replaced(copied: Path, tmp_path: Path) -> None:
    write_json(copied / "distill.json", {"reference": "default"})
    before = sha256(copied)
    save_student(build_student("micro"), tmp_path / "other", half=False)
    with pytest.raises(UserError, match="choose another folder"):
        export_run(tmp_path / "other", Export(copied, ["onnx"], ["fp32"]), log=Lines())
    assert sha256(copied) == before
    manifest = export_run(None, Export(copied, ["onnx"], ["fp32"]), log=Lines())
    assert manifest.reference == "default"


@pytest.mark.parametrize("sign", ["distill.json", "training", "manifest.json"])
def test_the_shipped_student_never_replaces_one_that_is_lost(
    sign: str, copied: Path, small_student: Path
) -> None:
    shutil.rmtree(copied / "student")
    if sign == "training":
        (copied / sign).mkdir()
    elif sign == "distill.json":
        (copied / sign).write_text('{"reference": "default"}')
    if sign != "manifest.json":
        (copied / "manifest.json").unlink()
    with pytest.raises(UserError, match=rf"as {sign} tells, .*/student is missing: distil it"):
        export_run(None, Export(copied, ["onnx"], ["fp32"]), log=Lines())
    assert not (copied / "student").exists()
    export_run(small_student, Export(copied, ["onnx"], ["fp32"]), log=Lines())


def test_a_student_that_a_killed_swap_moved_away_returns(copied: Path) -> None:
    scratch = copied / ".student.pocketfocus-abcd1234.part"
    scratch.mkdir()
    (copied / "student").rename(scratch / "student.old")
    log = Lines()
    export_run(None, Export(copied, ["onnx"], ["fp32"]), log=log)
    assert "unchanged" in log.of("onnx/student-fp32.onnx")
    assert not scratch.exists()


def test_a_broken_manifest_does_not_stop_an_export(copied: Path) -> None:
    (copied / "manifest.json").write_text("{")
    log = Lines()
    export_run(None, Export(copied, ["onnx"], ["fp32"]), log=log)
    assert [a.name for a in load_manifest(copied).artifacts] == ["onnx/student-fp32.onnx"]
    assert log.of("starting a new manifest")


def test_an_interrupted_export_goes_on(
    small_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = write

    def interrupted(network: object, recipe: object, *rest: object) -> object:
        if recipe == get_recipe("fp16"):
            raise KeyboardInterrupt
        return real(network, recipe, *rest)  # type: ignore[arg-type]

    patch_target(monkeypatch, replace(get_target("onnx"), write=interrupted))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        export_run(small_student, Export(tmp_path, ["onnx"], ["fp32", "fp16"]), log=Lines())
    assert [p.name for p in (tmp_path / "onnx").iterdir()] == ["student-fp32.onnx"]
    monkeypatch.undo()
    log = Lines()
    export_run(small_student, Export(tmp_path, ["onnx"], ["fp32", "fp16"]), log=log)
    assert "unchanged" in log.of("onnx/student-fp32.onnx")


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files are enough for two processes."""
    monkeypatch.setattr(stage, "TOGETHER", 2)
    monkeypatch.setattr(stage, "cores", lambda: 2)
    monkeypatch.setattr(stage, "NEEDS_BYTES", 1)


@pytest.mark.usefixtures("together")
def test_processes_write_the_same_files_at_once(
    run_dir: Path, small_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Lines()
    monkeypatch.setattr(stage, "make", lambda *_: pytest.fail("made in this process"))
    request = Export(tmp_path, ["onnx"], ["fp32", "int8"])
    found = export_run(small_student, request, log=here).artifacts
    alone = {a.name: a for a in load_manifest(run_dir).artifacts}
    assert found == [alone[a.name] for a in found] and len(found) == 2
    assert all(sha256(tmp_path / a.name) == a.sha256 for a in found)
    assert all(" MB, " in here.of(a.name) for a in found)
    assert load_manifest(tmp_path).artifacts == found


@pytest.mark.usefixtures("together")
def test_a_process_that_fails_is_one_error_and_ends_the_others(
    small_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage.order

    def order(run: Run, requested: stage.Requested) -> Work:
        found = real(run, requested)
        bad = {**found.arguments, "target": "toaster"}
        return replace(found, arguments=bad) if requested.recipe.name == "int8" else found

    monkeypatch.setattr(stage, "order", order)
    with pytest.raises(UserError, match="unknown target 'toaster'"):
        export_run(small_student, Export(tmp_path, ["onnx"], ["int8", "fp32"]), log=Lines())
    assert not children()


def children() -> list[psutil.Process]:
    """The processes that work for this one."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if CHILD in " ".join(child.cmdline())]


HANGS = """import time
def work(arguments, arrays, say):
    say("began")
    time.sleep(600)
"""


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("ends", [KeyboardInterrupt, UserError])
def test_what_works_is_not_waited_for_where_an_export_ends(
    small_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: type[BaseException],
) -> None:
    """Neither after Ctrl-C nor after a file that failed; what waits is not begun."""
    (tmp_path / "hangs.py").write_text(HANGS)
    began: SimpleQueue[str] = SimpleQueue()

    def fails(_: object) -> None:
        assert [began.get(timeout=100) for _ in range(3)][1:] == ["began"] * 2
        raise ends("enough")

    hangs = Work(f"{tmp_path / 'hangs.py'}:work", {})
    monkeypatch.setattr(stage, "order", lambda *_: hangs)
    monkeypatch.setattr(stage, "as_completed", fails)
    run = tmp_path / "run"
    request = Export(run, ["onnx"], ["int8", "fp32", "fp16"])
    with pytest.raises(ends, match="enough"):
        export_run(small_student, request, log=began.put)
    assert not children() and began.empty()


def test_a_second_export_into_the_folder_is_one_line(
    small_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both would save the manifest, each without the other's files."""
    out, codes = tmp_path / "out", list[int]()

    def meanwhile(network: Network, recipe: Recipe, path: Path, phases: Phases) -> Written:
        words = ["export", "--student", str(small_student), "--out", str(out), "--targets", "onnx"]
        codes.append(main(words))
        path.write_bytes(b"a file")
        return Written({}, None)

    patch_target(monkeypatch, replace(get_target("onnx"), write=meanwhile, read=lambda *_: {}))
    request = Export(out, ["onnx"], ["fp32"])
    export_run(small_student, request, log=Lines())
    assert set(codes) == {2}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(codes)
    assert "out is being written to by another process: export when it has ended, or in" in said[0]
    names = [a.name for a in load_manifest(out).artifacts]
    assert names == ["onnx/student-fp32.onnx"]
    export_run(small_student, request, log=Lines())  # the first has let go


def test_options_change_the_files_of_their_target_alone() -> None:
    request = Export(Path("out"), ["onnx", "coreml"], ["int4"], {"ios": 18, "form": "blocks"})
    plain = Export(Path("out"), ["onnx", "coreml"], ["int4"])
    changed = [a != b for a, b in zip(request.files(), plain.files(), strict=True)]
    assert changed == [False, True]
    assert plain.files(of_reference=True) == request.files()
    wrongs: tuple[Options, ...] = ({"ios": 12}, {"form": "trees"}, {"ios": 17, "form": "blocks"})
    for wrong in wrongs:
        with pytest.raises(UserError, match="choose"):
            replace(plain, targets=["onnx"], options=wrong).files()


def patch_target(monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    monkeypatch.setattr(onnx, "TARGET", target)


@pytest.mark.parametrize(
    ("targets", "precisions", "message"),
    [
        (["tflite"], ["fp32"], "unknown target 'tflite': choose from executorch, coreml, onnx"),
        (["onnx"], ["int2"], "unknown precision 'int2': choose from fp32, fp16, int8, int4"),
    ],
)
def test_unknown_names_are_user_errors(
    targets: list[str], precisions: list[str], message: str, small_student: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        export_run(small_student, Export(tmp_path / "out", targets, precisions), log=Lines())
    assert not (tmp_path / "out").exists()


def test_no_student_no_files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        export_run(tmp_path / "empty", Export(tmp_path / "out", ["onnx"], ["fp32"]), log=Lines())
    assert not (tmp_path / "out").exists()


def test_a_missing_toolchain_is_a_user_error(
    small_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_target(monkeypatch, replace(get_target("onnx"), cannot_write=lambda: "no onnxscript"))
    with pytest.raises(UserError, match="cannot be written here: no onnxscript"):
        export_run(small_student, Export(tmp_path / "out", ["onnx"], ["fp32"]), log=Lines())


@pytest.mark.parametrize(
    ("target", "name", "error"),
    [
        ("coreml", "models.MLModel.save", "[MIL FileWriter]: Unknown error while writing data."),
        ("coreml", "convert", "filesystem error: cannot copy: Input/output error"),
        ("executorch", "", ""),
    ],
)
def test_a_toolchain_on_a_full_disk_is_a_user_error(
    target: str,
    name: str,
    error: str,
    small_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They do not say so, neither of the disk of --out nor of temporary files, which go there."""
    places = []

    def full(*_: object, **__: object) -> None:
        places.append(Path(tempfile.gettempdir()))
        raise RuntimeError(error) if error else CalledProcessError(1, "flatc")

    calls = {
        "coreml": f"coremltools.{name}",
        "executorch": "executorch.exir.to_edge_transform_and_lower",
    }
    monkeypatch.setattr(calls[target], full)
    with pytest.raises(UserError, match=r"cannot write .*fp32\..*full disk"):
        export_run(small_student, Export(tmp_path, [target], ["fp32"]), log=Lines())
    assert not list((tmp_path / target).iterdir())
    assert tempfile.gettempdir() != str(places[0])
    assert places[0].parent == tmp_path / target


def test_the_caller_s_student_is_left_alone(run_dir: Path, small_student: Path) -> None:
    """Exporting halves, quantizes and groups copies only."""
    kept = load_student(run_dir / "student").state_dict()
    for name, tensor in load_student(small_student).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, kept[name])


def test_files_depend_on_the_sources_of_folds_and_of_all_of_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They once did not: a changed fold kept stale files."""
    asked: list[Path] = []

    def asks(path: Path) -> str:
        asked.append(path)
        return ""

    monkeypatch.setattr("pocketfocus.run.cache.sha256", asks)
    source_hash.cache_clear()
    try:
        code_hash()
    finally:
        source_hash.cache_clear()
    found = {path.relative_to(PACKAGE).as_posix() for path in asked}
    for folder in ("mobile", "quantize", "export"):
        sources = {p.relative_to(PACKAGE).as_posix() for p in (PACKAGE / folder).rglob("*.py")}
        assert sources <= found


def kept_of(
    out: Path, *, reference: str = "", size: Size = (64, 64), student: str = ""
) -> set[str]:
    """What a run keeps of a folder that holds a UNet of reference `a` for photos of 64x64."""
    folder = out / "executorch"
    folder.mkdir(parents=True)
    (folder / "unet-int4.pte").write_bytes(b"weights")
    artifact = Artifact("executorch/unet-int4.pte", "executorch", "int4", "0", 7)
    Manifest((64, 64), [artifact], reference="a").save(out)
    source = Source([], ["unet"], "", Manifest(size, [], student, reference=reference))
    found = previous(Run(Export(out, [], []), [], source, lambda _: None))
    return {artifact.name for artifact in found.files}


def test_files_of_another_reference_or_size_are_not_kept(tmp_path: Path) -> None:
    assert kept_of(tmp_path / "same", reference="a") == {"executorch/unet-int4.pte"}
    for name, asked in (
        ("other", {"reference": "b"}),
        ("size", {"reference": "a", "size": (64, 128)}),
    ):
        assert not kept_of(tmp_path / name, **asked)
        assert not (tmp_path / name / "executorch" / "unet-int4.pte").exists()


def test_a_student_is_not_exported_into_the_run_of_a_reference(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the run of a reference: choose another folder"):
        kept_of(tmp_path / "run", student="1" * 64)
    assert (tmp_path / "run" / "executorch" / "unet-int4.pte").exists()
