"""Whose an evaluation's scores are: the run's own files, as they are now, or other models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketfocus.benchmarks import evaluate, tables
from pocketfocus.benchmarks.evaluate import Comparison, Scoring, evaluate_scoring, hash_of
from pocketfocus.benchmarks.evaluation import evaluation_of
from pocketfocus.benchmarks.measured import read_run
from pocketfocus.benchmarks.report import render
from pocketfocus.cli import main
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256
from pocketfocus.run.manifest import Artifact, Manifest, load_manifest
from pocketfocus.run.rows import contents
from tests.benchmarks.test_compare import write_rows

FILE = "onnx/student-int8.onnx"
OTHER = "9" * 64
BUDGET = ("--max-loss", "0.1dB")


def model_rows(model: str, db: float, of: str | None = None) -> list[dict[str, Any]]:
    """A cell and a mean of a model off the diagonal."""
    about = {"model": model, "stacks": "synthetic"}
    cell = {"input_position": 0, "output_position": 4, "psnr_db": db, "ssim": 0.9}
    mean = {"mean_psnr_db": db, "mean_ssim": 0.9, "psnr_db_by_distance": {"4": db}, "scenes": 1}
    off = {"mean_psnr_db_off_diagonal": db, "mean_ssim_off_diagonal": 0.9}
    return [about | cell, about | mean | off | ({"sha256": of} if of else {})]


def make(folder: Path, db: float, called: str = "{}") -> Path:
    """A run of a student and a file, both there, evaluated at `db` by names such as `called`."""
    (folder / "onnx").mkdir(parents=True)
    for name in ("student", FILE):
        (folder / name).write_text(f"{folder.name} {name}")
    artifact = Artifact(FILE, "onnx", "int8", sha256(folder / FILE), 9)
    Manifest((32, 32), [artifact], sha256(folder / "student")).save(folder)
    for name in ("bench.json", "verify.json"):
        write_rows(folder / name, [])
    scored = [(called.format(n), db, sha256(folder / n)) for n in (FILE, "student")]
    evaluated(folder, *(model_rows(*each) for each in scored))
    return folder


def evaluated(folder: Path, *models: list[dict[str, Any]]) -> None:
    rows = [*model_rows("copy", 20.0), *(row for model in models for row in model)]
    write_rows(folder / "evaluate.json", rows)


def names(folder: Path) -> dict[str, float | None]:
    run = read_run(folder)
    assert {cell.model for cell in run.evaluation.cells} == {m.model for m in run.evaluation.means}
    return {row.model: row.mean_psnr_db for row in run.evaluation.means}


def judged(*words: object) -> int:
    return main(["compare", *map(str, words), *BUDGET])


@pytest.mark.parametrize("called", ["{}", "a/{}", "{folder}/{{}}"])
def test_scores_of_an_older_student_are_nobodys(
    tmp_path: Path, called: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Distilled and exported again after it was evaluated, by whatever path it was."""
    before = make(tmp_path / "before", 37.25)
    a = make(tmp_path / "a", 37.25, called.format("{}", folder=tmp_path / "a"))
    assert names(a) == {"copy": 20.0, FILE: 37.25, "student": 37.25}
    assert judged(before, a) == 0
    for name in ("student", FILE):
        (a / name).write_text("another")
    artifact = replace(load_manifest(a).artifacts[0], sha256=sha256(a / FILE))
    replace(load_manifest(a), artifacts=[artifact], student_sha256=sha256(a / "student")).save(a)
    capsys.readouterr()
    assert names(a) == {"copy": 20.0}
    assert "2 of 3 models left out" in " ".join(capsys.readouterr().err.split())
    assert "37.25" not in render(a)
    tables.main([str(a)])
    assert "37.25" not in capsys.readouterr().out
    assert judged(before, a) == 2


def test_a_self_ensemble_is_known_by_its_file(tmp_path: Path) -> None:
    """And the plain file is judged by its own scores."""
    a = make(tmp_path / "a", 30.0)
    file, of = str(a / FILE), sha256(a / FILE)
    rows = [model_rows(f"{file}@self-ensemble", 31.0, of), model_rows(file, 30.0, of)]
    evaluated(a, *rows, model_rows(f"{tmp_path / 'b' / FILE}@self-ensemble", 32.0, OTHER))
    other = f"{tmp_path / 'b' / FILE}@self-ensemble"
    assert names(a) == {"copy": 20.0, f"{FILE}@self-ensemble": 31.0, FILE: 30.0, other: 32.0}
    (a / FILE).write_text("another")
    artifact = replace(load_manifest(a).artifacts[0], sha256=sha256(a / FILE))
    replace(load_manifest(a), artifacts=[artifact]).save(a)
    assert names(a) == {"copy": 20.0, other: 32.0}


def test_the_shipped_students_self_ensemble_is_not_a_runs(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 30.0)
    evaluated(a, model_rows("student@self-ensemble", 36.0, OTHER))
    assert names(a) == {"copy": 20.0}
    own = sha256(a / "student")
    evaluated(a, model_rows("student@self-ensemble", 31.0, own))
    assert names(a) == {"copy": 20.0, "student@self-ensemble": 31.0}


def test_scores_without_hashes_are_nobodys(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 30.0)
    evaluated(a, model_rows("student", 30.0), model_rows("build/else/student", 31.0, OTHER))
    assert names(a) == {"copy": 20.0, "build/else/student": 31.0}


@pytest.mark.parametrize("shipped", [OTHER, None])
def test_a_run_is_judged_by_its_own_student(tmp_path: Path, shipped: str | None) -> None:
    """Beside the shipped one, which has the same name, and may be the same."""
    for name, db in (("before", 36.0), ("after", 30.0)):
        folder = make(tmp_path / name, db)
        own, file = sha256(folder / "student"), sha256(folder / FILE)
        other = model_rows("student", 36.0 if shipped else db, shipped or own)
        paths = [str(folder / "student"), str(folder / FILE)]
        evaluated(folder, model_rows(paths[0], db, own), other, model_rows(paths[1], db, file))
        told = f"student ({(shipped or own)[:12]})"
        assert list(names(folder)) == ["copy", "student", told, FILE]
        assert names(folder)["student"] == db
    assert judged(tmp_path / "before", tmp_path / "after") == 1
    assert judged(tmp_path / "after", tmp_path / "before") == 0


def test_two_runs_in_one_evaluation_are_told_apart(tmp_path: Path) -> None:
    """The student of the one is that of the other, too, or is not."""
    before, after = make(tmp_path / "before", 36.0), make(tmp_path / "after", 30.0)
    for of in (OTHER, sha256(after / "student")):
        other = model_rows(str(before / "student"), 36.0, of)
        own = model_rows(str(after / "student"), 30.0, sha256(after / "student"))
        evaluated(after, other, own)
        assert names(after) == {"copy": 20.0, str(before / "student"): 36.0, "student": 30.0}


def test_what_the_first_run_never_scored_does_not_pass(tmp_path: Path) -> None:
    before, after = make(tmp_path / "before", 36.0), make(tmp_path / "after", 36.0)
    write_rows(before / "evaluate.json", contents(before / "evaluate.json")[:4])
    assert list(names(before)) == ["copy", FILE]
    assert judged(before, after) == 1


def test_an_evaluation_names_its_files_by_their_hashes(small_student: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(small_student, student)
    scoring = Scoring([str(student)], scenes=1, size=(64, 64), how=Comparison((4,)))
    found = evaluate_scoring(scoring, tmp_path / "evaluate.json")
    hashes = {row.model: row.sha256 for row in found.means}
    assert hashes == {str(student): sha256(small_student), "copy": None, "blur": None}
    manifest = Manifest((64, 64), [], hash_of(str(student)) or "")
    read, scenes = evaluation_of(tmp_path, manifest, manifest.hashes)
    assert [row.model for row in read.means][:2] == ["student", "copy"] == [*scenes][:2]
    assert hash_of(f"{student}@self-ensemble") == sha256(small_student)


def test_what_is_no_model_is_refused_before_it_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may be somebody's home: `evaluate .` once read all that lay below it."""
    asked: list[str] = []
    monkeypatch.setattr(evaluate, "hash_of", asked.append)
    with pytest.raises(UserError, match=r"has no config\.json"):
        evaluate_scoring(Scoring([str(tmp_path)]))
    assert not asked
