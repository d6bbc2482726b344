"""Two runs side by side: what is noise, what breaks a budget, and what cannot be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketfocus.benchmarks.budgets import parsed
from pocketfocus.benchmarks.checks import save_stacks
from pocketfocus.benchmarks.compare import Change, compare
from pocketfocus.benchmarks.compare_page import pairs
from pocketfocus.benchmarks.evaluate import Comparison, evaluate_models
from pocketfocus.benchmarks.measured import read_run
from pocketfocus.benchmarks.samples import (
    TIMES_FILE,
    TimesRow,
    keep_scenes,
    read_scenes,
    read_times,
    scenes_file,
)
from pocketfocus.benchmarks.scores import Call, Ledger, Score
from pocketfocus.cli import main
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, write_json
from pocketfocus.run.manifest import Artifact, Delegation, Manifest, load_manifest
from pocketfocus.run.rows import contents, merge_rows
from pocketfocus.run.rows import write_rows as write_typed

FILE = "executorch/student-int8.pte"
PARITY = "int8 file, executed"
Made = Callable[..., Path]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as they stand in a file, right or wrong."""
    write_json(path, {"rows": list(rows)})


def kept(times: Sequence[Any], device: str = "host") -> TimesRow:
    rounds = tuple(tuple(map(float, one)) for one in times)
    about = {"artifact": FILE, "target": "executorch", "precision": "int8", "device": device}
    return TimesRow(**about, sha256="1" * 64, rounds_ms=rounds)


def make(
    folder: Path, *, ms: float = 10.0, spread: float = 0.05, db: float = 30.0, seed: int = 0,
    scenes: int = 12, size: int = 2**20, threads: int = 2, chip: str = "x1", bright: int = 0,
) -> Path:  # fmt: skip
    """A run of one file with every figure, its calls and scenes drawn around those given."""
    random = np.random.default_rng(seed)
    delegation = Delegation(1, 98, 100, 0.98, ())
    artifact = Artifact(FILE, "executorch", "int8", "0" * 64, size, delegation=delegation)
    folder.mkdir(parents=True)
    Manifest((32, 32), [artifact], "2" * 64).save(folder)
    rounds = [ms * random.lognormal(0, spread, 20) for _ in range(4)]
    p50 = float(np.median(np.concatenate(rounds)))
    machine = {"device": "host", "model": "board", "chip": chip, "os": "", "runtime": ""}
    about = {"artifact": FILE, "target": "executorch", "precision": "int8", **machine}
    about["sha256"] = artifact.sha256
    figures = {"load_ms": 3.0, "first_ms": 4.0, "p50_ms": round(p50, 3), "p90_ms": p50}
    more = {"p99_ms": p50, "runs": 80, "peak_rss_mib": 300.0, "bytes": size, "threads": threads}
    ended = {"status": "measured", "why": ""}
    write_rows(folder / "bench.json", [{**about, **figures, **more, **ended}])
    write_typed(folder / "bench.samples.json", [kept(rounds)])
    gate = {"gate": PARITY, "psnr_db": db + 15, "threshold_db": 40.0, "status": "pass", "why": ""}
    write_rows(folder / "verify.json", [{**about, **gate, "photos_sha256": "5" * 64}])
    frames = np.full((9, 32, 32, 3), 100, np.uint8)
    frames[5] += np.uint8(bright)
    save_stacks(folder / "stacks.npz", {"photo": frames[4], FILE: frames})
    difficulty = np.random.default_rng(7).normal(0, 3, scenes)  # of the scenes, alike for all runs
    save_scores(folder, db + difficulty + random.normal(0, 0.05, scenes), difficulty)
    return folder


def save_scores(folder: Path, own: Any, difficulty: Any) -> None:
    """An evaluation of one pair of positions, and its scenes."""
    models, files = {FILE: own, "copy": 25 + difficulty}, load_manifest(folder).hashes
    calls = [
        Call(scene=n, model=name, position=0, scores={4: Score(float(value), 0.9)})
        for name, values in models.items()
        for n, value in enumerate(values)
    ]
    means, cells = [], []
    for name, values in models.items():
        score = float(np.mean(values))
        pair = {"input_position": 0, "output_position": 4, "psnr_db": score, "ssim": 0.9}
        cells.append({"model": name, "stacks": "synthetic", **pair})
        mean = {"mean_psnr_db": score, "mean_ssim": 0.9, "psnr_db_by_distance": {"4": score}}
        off = {"mean_psnr_db_off_diagonal": score, "mean_ssim_off_diagonal": 0.9}
        of = {"sha256": files[name]} if name in files else {}
        about = {"model": name, "stacks": "synthetic", "scenes": len(values), **of}
        means.append(about | mean | off)
    write_rows(folder / "evaluate.json", [*cells, *means])
    keep_scenes(folder / "evaluate.json", calls)


def changes(a: Path, b: Path) -> dict[str, Change]:
    return {each.metric: each for each in compare(read_run(a), read_run(b)).changes}


def run(*words: object) -> int:
    return main(["compare", *map(str, words)])


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return make(tmp_path / "a")


# what changed


def test_the_same_files_are_the_same(a: Path, tmp_path: Path) -> None:
    found = changes(a, make(tmp_path / "b"))
    assert {each.verdict for each in found.values()} == {"same"}
    assert list(found) == [
        "size", "delegate coverage", "latency p50", "load", "first call", "peak memory",
        f"parity, {PARITY}", "quality", "SSIM",
    ]  # fmt: skip


def test_another_measurement_of_the_same_is_noise(a: Path, tmp_path: Path) -> None:
    found = changes(a, make(tmp_path / "b", seed=1))
    assert found["latency p50"].verdict == found["quality"].verdict == "within noise"
    assert found["latency p50"].change != 0


def test_what_is_slower_worse_and_bigger_is_beyond_noise(a: Path, tmp_path: Path) -> None:
    found = changes(a, make(tmp_path / "b", ms=12.0, db=29.5, size=2**20 + 1, seed=1))
    for metric in ("latency p50", "quality", "size", f"parity, {PARITY}"):
        assert found[metric].verdict == "worse", metric
    slower = found["latency p50"]
    assert slower.interval and slower.interval[0] < 0.2 < slower.interval[1]
    assert slower.change == pytest.approx(0.2, abs=0.05)
    better = changes(tmp_path / "b", a)
    assert {better[m].verdict for m in ("latency p50", "quality", "size")} == {"better"}


def test_what_has_no_samples_is_too_little_to_judge(a: Path, tmp_path: Path) -> None:
    b = make(tmp_path / "b", ms=12.0, db=29.0, seed=1, scenes=12)
    (b / "bench.samples.json").unlink()
    (b / "evaluate.samples.json").unlink()
    rows = contents(b / "verify.json")
    write_rows(b / "verify.json", [{k: v for k, v in rows[0].items() if k != "photos_sha256"}])
    found = changes(a, b)
    for metric, said in (("latency p50", "run bench again"), ("quality", "run evaluate again"),
                         (f"parity, {PARITY}", "rows of verify do not tell")):  # fmt: skip
        assert found[metric].verdict == "too little to judge"
        assert said in found[metric].why
    few = changes(make(tmp_path / "c", scenes=1), make(tmp_path / "d", scenes=1, db=29))
    assert few["quality"].why == "1 scene, 5 tell something"


def test_few_rounds_are_too_little_to_judge(a: Path, tmp_path: Path) -> None:
    """Such as the two that files of older versions hold."""
    b = make(tmp_path / "b", ms=12.0)
    (row,) = contents(b / "bench.samples.json")
    first, second, *more = row["rounds_ms"]
    write_rows(
        b / "bench.samples.json", [{**row, "rounds_ms": [first + more[0], second + more[1]]}]
    )
    latency = changes(a, b)["latency p50"]
    assert latency.verdict == "too little to judge"
    assert latency.why == "2 rounds of calls, 3 tell something"


def test_samples_of_another_measurement_are_not_believed(a: Path) -> None:
    rows = contents(a / "bench.json")
    write_rows(a / "bench.json", [{**rows[0], "p50_ms": rows[0]["p50_ms"] + 0.1}])
    write_rows(a / "evaluate.json", contents(a / "evaluate.json")[::-1])
    again = read_run(a)
    assert again.timings[0].times == ()
    assert again.scenes == {}


@pytest.mark.parametrize("file", ["evaluate.json", "evaluate.samples.json"])
def test_models_without_means_are_left_alone(file: str, a: Path) -> None:
    """Whoever wrote cells or scenes of them; they keep the names that they have."""
    content = read_json(a / file)
    content["rows"][0]["model"] = "/elsewhere/student"
    write_json(a / file, content)
    assert read_run(a).evaluation.means


def test_rows_of_another_file_are_left_out(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bench.json", "verify.json"):
        write_rows(a / name, [row | {"sha256": "1" * 64} for row in contents(a / name)])
    found = changes(a, make(tmp_path / "b"))
    assert found["latency p50"].verdict == "only in B"
    assert capsys.readouterr().err.count("1 of 1 rows left out") == 2


def test_a_file_that_changed_has_no_rows(a: Path) -> None:
    assert read_run(a).bench
    (a / FILE).parent.mkdir()
    (a / FILE).write_text("changed since")
    assert not read_run(a).bench and not read_run(a).gates


def test_a_gate_that_fails_now_is_worse(a: Path, tmp_path: Path) -> None:
    b = make(tmp_path / "b")
    rows = contents(b / "verify.json")
    write_rows(b / "verify.json", [{**rows[0], "status": "fail"}])
    found = changes(a, b)[f"parity, {PARITY}"]
    assert (found.verdict, found.why) == ("worse", "gate: pass → fail")


def test_files_of_one_run_alone_are_said_to_be(a: Path, tmp_path: Path) -> None:
    b = make(tmp_path / "b")
    replace(load_manifest(b), artifacts=[]).save(b)
    assert changes(a, b)["size"].verdict == "only in A"
    assert changes(b, a)["size"].verdict == "only in B"


def test_models_that_evaluate_names_by_path_are_those_of_the_run(a: Path, tmp_path: Path) -> None:
    b = make(tmp_path / "b", db=29.5, seed=1)
    for folder in (a, b):
        path = folder / "evaluate.json"
        name = {FILE: str(folder / FILE)}
        write_rows(path, [r | {"model": name.get(r["model"], r["model"])} for r in contents(path)])
    found = changes(a, b)["quality"]
    assert found.artifact == FILE
    assert found.change == pytest.approx(-0.5, abs=0.1)


# what cannot be compared


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"threads": 4}, r"were timed \(.*pte\) with 2 threads, those of .* with 4 threads"),
        ({"chip": "x2"}, "were timed on host, board, x1, those of .* host, board, x2"),
        ({"scenes": 9}, "evaluated on 12 scenes of synthetic, .* 9 scenes of synthetic"),
    ],
)
def test_what_was_measured_otherwise_is_refused(
    a: Path, tmp_path: Path, other: dict[str, Any], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    b = make(tmp_path / "b", **other)
    assert run(a, b, "--page", tmp_path / "page.html") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line
    assert str(a) in line and str(b) in line
    assert not (tmp_path / "page.html").exists()


def change_rows(path: Path, **fields: Any) -> None:
    write_rows(path, [row | fields for row in contents(path)])


def other_device(b: Path) -> None:
    change_rows(b / "bench.json", device="arm64")


def other_photo(b: Path) -> None:
    change_rows(b / "verify.json", photos_sha256="6" * 64)


def other_frames(b: Path) -> None:
    for folder, photo in ((b.with_name("a"), (640, 640)), (b, (960, 1280))):
        change_rows(folder / "bench.json", photo=photo)


def other_positions(b: Path) -> None:
    change_rows(b / "verify.json", why="at positions 0, 4 only")


def other_size(b: Path) -> None:
    replace(load_manifest(b), size=(64, 48)).save(b)


def other_scenes(b: Path) -> None:
    save_scores(b, np.full(12, 30.0), np.ones(12))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_device, "timed on host, those of .* timed on arm64"),
        (other_photo, "on host was verified on other photos"),
        (other_frames, r"with a photo of 640x640, those of .* of 1280x960"),
        (other_positions, "from all positions, those of .* from 0, 4"),
        (other_size, "take photos of 32x32, those of .* take photos of 48x64"),
        (other_scenes, "evaluated on other photos"),
    ],
)
def test_other_devices_photos_and_sizes_are_refused(
    a: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    b = make(tmp_path / "b")
    spoil(b)
    with pytest.raises(UserError, match=said):
        compare(read_run(a), read_run(b))


@pytest.mark.parametrize("name", ["bench.json", "verify.json", "bench.samples.json"])
def test_rows_of_something_else_are_one_line(a: Path, name: str) -> None:
    write_rows(a / name, [{"artifact": FILE, "gate": "x", "p50_ms": 1}])
    with pytest.raises(UserError, match=rf"{name}, row 1, .*: delete the file and run the stage"):
        read_run(a)


@pytest.mark.parametrize("content", [b"", b"no pictures", b"PK\x03\x04 cut off"])
def test_pictures_that_cannot_be_read_are_one_line(a: Path, content: bytes) -> None:
    (a / "stacks.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"stacks\.npz cannot be read .*: run verify again"):
        read_run(a)


# budgets


BUDGETS = ("--max-slower", "5%", "--max-loss", "0.1dB", "--max-bigger", "2%")


def test_budgets_that_hold_and_that_break(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(a, make(tmp_path / "alike", seed=1), *BUDGETS) == 0
    assert "budget broken" not in capsys.readouterr().err
    worse = make(tmp_path / "worse", ms=12.0, db=29.5, size=2**20 * 11 // 10, seed=1)
    assert run(a, worse, *BUDGETS) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert [line.split()[2] for line in lines] == ["--max-slower", "--max-loss", "--max-bigger"]
    assert f"--max-bigger 2%: {FILE}, size: 1.000 → 1.100 MiB (+10.0 %)" in lines[2]
    assert run(a, worse) == 0, "no budget was named"
    assert run(worse, a, *BUDGETS) == 0, "what got better breaks nothing"


def test_noise_breaks_no_budget_and_ignorance_does(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = make(tmp_path / "noisy", ms=12, spread=1.0, seed=1)
    assert run(make(tmp_path / "also", spread=1.0), noisy, "--max-slower", "0.1%") == 0
    said = capsys.readouterr().err
    assert f"noise alone can explain: --max-slower 0.1%: {FILE} on host" in " ".join(said.split())
    slower = make(tmp_path / "slower", ms=12.0)
    (slower / "bench.samples.json").unlink()
    assert run(a, slower, "--max-slower", "5%") == 1


def test_a_file_that_is_gone_breaks_its_budget(a: Path, tmp_path: Path) -> None:
    b = make(tmp_path / "b")
    manifest = load_manifest(b)
    replace(manifest, artifacts=[replace(manifest.artifacts[0], name="onnx/x.onnx")]).save(b)
    assert run(a, b, "--max-bigger", "2%") == 2  # no file in common
    replace(manifest, artifacts=[*load_manifest(b).artifacts, *manifest.artifacts]).save(a)
    assert run(a, b, "--max-bigger", "2%") == 1


def test_a_budget_of_what_was_not_measured_is_no_pass(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = make(tmp_path / "b")
    (b / "evaluate.json").unlink()
    assert run(a, b, "--max-loss", "1dB") == 2
    assert "run `pocketfocus evaluate` on both" in capsys.readouterr().err
    assert run(a, b) == 0
    assert f"nothing of evaluate: {b} did not run it" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("text", ["5", "%", "-5%", "five%", "5dB", "nan%"])
def test_a_percentage_is_written_as_one(text: str) -> None:
    with pytest.raises(UserError, match="write one such as 5%"):
        parsed("--max-slower", text, "%")


@pytest.mark.parametrize("text", ["0.1", "-1dB", "5%", "dB"])
def test_a_loss_is_written_in_db(text: str) -> None:
    with pytest.raises(UserError, match=r"write one such as 0\.1dB"):
        parsed("--max-loss", text, "dB")
    assert (parsed("", "2.5 %", "%"), parsed("", "0.1 db", "dB")) == (0.025, 0.1)


# what is written


def test_json_holds_every_change(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = make(tmp_path / "b", ms=12.0, seed=1)
    assert run(a, b, "--json", "--max-slower", "5%") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1 and (told["a"], told["b"]) == (str(a), str(b))
    row = next(row for row in told["rows"] if row["metric"] == "latency p50")
    assert row["relative"] and row["verdict"] == "worse" and len(row["interval"]) == 2
    assert len(told["broken"]) == 1


def test_the_page_shows_the_worst_frame_and_fetches_nothing(a: Path, tmp_path: Path) -> None:
    b = make(tmp_path / "b", bright=20, ms=12.0)
    assert run(a, b, "--page", tmp_path / "page.html", "--max-slower", "5%") == 1
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f'alt="{FILE}, frame 5, difference"' in page
    assert page.count("<img") == 3
    assert "1 budget broken" in page
    assert not re.search(r"(?:src=|<link[^>]*href=|url\()[\"']?(\w+:)?//", page)


def test_pictures_of_another_photo_are_not_compared(a: Path, tmp_path: Path) -> None:
    """Verified on another device with another photo since, which its rows alone tell."""
    b = make(tmp_path / "b", bright=20)
    with np.load(b / "stacks.npz") as kept:
        save_stacks(b / "stacks.npz", {**kept, "photo": kept["photo"] + np.uint8(1)})
    comparison = compare(read_run(a), read_run(b))
    assert not pairs(comparison)
    assert changes(a, b)[f"parity, {PARITY}"].verdict == "same"


# what the figures are made of


def test_calls_are_kept_and_come_back(tmp_path: Path) -> None:
    files, path = {FILE: "1" * 64}, tmp_path / TIMES_FILE
    merge_rows(path, TimesRow, [kept([[1, 2], [3]])], ["host"], files)
    merge_rows(path, TimesRow, [kept([[4]], "phone")], ["phone"], files)
    assert read_times(tmp_path) == {
        (FILE, "host"): ((1.0, 2.0), (3.0,)),
        (FILE, "phone"): ((4.0,),),
    }


def test_scenes_make_the_mean_of_their_evaluation(tmp_path: Path) -> None:
    from tests.benchmarks.test_evaluate import echo, textured

    ledger, path, how = Ledger(), tmp_path / "scores.json", Comparison((0, 4))
    found = evaluate_models([echo()], [textured(n) for n in range(3)], "t", how, ledger)
    write_typed(path, found.rows())
    keep_scenes(path, ledger)
    scenes = read_scenes(path)["echo"]
    assert sorted(scenes) == [0, 1, 2]
    means = [scene.psnr_db for scene in scenes.values()]
    assert np.mean(means) == pytest.approx(found.means[0].mean_psnr_db_off_diagonal)
    kept = read_json(scenes_file(path))
    write_json(scenes_file(path), {**kept, "of": "another"})
    assert read_scenes(path) == {}
