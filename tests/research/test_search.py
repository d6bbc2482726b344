"""The architecture search: keys, equal trainings, the front, and going on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pocketfocus.benchmarks.charts import Point, front
from pocketfocus.data.stacks import RenderedScenes
from pocketfocus.distill.train.crops import Crops
from pocketfocus.export.stage import Export
from pocketfocus.models.student import RefocusStudent, load_student
from pocketfocus.research import search
from pocketfocus.research.clock import ratio
from pocketfocus.research.search import (
    EAGER,
    FILES,
    INT8,
    candidates,
    gigaflops,
    main,
    randomise,
    search_table,
    train,
)
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import Row, read_json
from pocketfocus.run.manifest import Artifact, Delegation, Manifest, load_manifest

SMALL: dict[str, dict[str, Any]] = {
    "one": {"channels": (8, 16), "blocks": (1, 1), "size": (64, 64)},
    "another": {"channels": (16, 8), "blocks": (1, 1), "size": (64, 64)},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CANDIDATES", SMALL)
    monkeypatch.setattr(search, "SIZE", (64, 64))
    monkeypatch.setattr(search, "CROPS", Crops(1.0, 2, 64))


def stacks() -> np.ndarray:
    """Random, uint8 [3,9,3,64,64]."""
    return np.random.default_rng(0).integers(0, 255, (3, 9, 3, 64, 64)).astype(np.uint8)


def test_a_key_is_of_all_that_training_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(steps: int, data: str) -> str:
        return candidates(["one"], steps, data)[0].key

    assert key(5, "x") == key(5, "x")
    other = candidates(["another"], 5, "x")[0].key
    assert len({key(5, "x"), key(6, "x"), key(5, "y"), key(0, "x"), other}) == 5
    assert key(0, "x") == key(0, "y"), "random weights have seen no data"
    before = key(5, "x")
    forward = RefocusStudent.forward
    monkeypatch.setattr(RefocusStudent, "forward", lambda *a: 0.5 * forward(*a))
    assert key(5, "x") != before, "the same config, another network"


class Recorder(nn.Module):
    """Brightens the photo by what it learns; keeps what it was given."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(start))
        self.seen: list[Tensor] = []

    def forward(self, photo: Tensor, position: Tensor) -> Tensor:
        self.seen += [photo.clone(), position.clone()]
        return (photo + self.shift).repeat_interleave(9, dim=0)


def test_all_train_on_the_same_batches(tmp_path: Path) -> None:
    one, other = Recorder(0.5), Recorder(-0.5)
    train(one, stacks(), tmp_path / "one", 3)
    train(other, stacks(), tmp_path / "other", 3)
    assert len(one.seen) == 6
    assert all(torch.equal(a, b) for a, b in zip(one.seen, other.seen, strict=True))
    assert not torch.equal(one.seen[0], one.seen[2]), "each step has its own batch"
    assert one.shift.item() < 0.5 and other.shift.item() > -0.5


def test_gigaflops_of_one_stack() -> None:
    class Layer(nn.Module):
        photo_size = (8, 16)

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, photo: Tensor, position: Tensor) -> Tensor:
            return self.conv(photo)

    assert gigaflops(cast(RefocusStudent, Layer())) == pytest.approx(2 * 27 * 5 * 8 * 16 / 1e9)


def test_random_weights_leave_nothing_at_zero() -> None:
    (candidate,) = candidates(["one"], 0, "")
    kept = {n: p.clone() for n, p in candidate.student.named_parameters() if p.any()}
    randomise(candidate.student)
    assert all(p.any() for p in candidate.student.parameters())
    assert all(
        torch.equal(p, dict(candidate.student.named_parameters())[n]) for n, p in kept.items()
    )


points = st.lists(st.tuples(st.integers(1, 9), st.integers(-3, 3)), min_size=1, max_size=9).map(
    lambda pairs: [Point(str(n), ms, gain) for n, (ms, gain) in enumerate(pairs)]
)


@given(points)
def test_the_front_is_what_nothing_beats(points: list[Point]) -> None:
    def beats(a: Point, b: Point) -> bool:
        return (a.ms < b.ms and a.gain >= b.gain) or (a.ms <= b.ms and a.gain > b.gain)

    best = front(points)
    assert [p.ms for p in best] == sorted(p.ms for p in best)
    for point in points:
        assert (point in best) != any(beats(other, point) for other in points)


def cells(table: str) -> list[dict[str, str]]:
    """The lines of a Markdown table, by column."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_table_compares_to_the_first() -> None:
    def manifest(size: int, calls: int, share: float) -> Manifest:
        lowered = Delegation(calls, 9, 10, share, ())
        name = FILES[INT8][1]
        files = [Artifact(name, "executorch", "int8", "", size, delegation=lowered)]
        return Manifest((64, 64), artifacts=files)

    chosen = candidates([], 0, "")
    rows: list[Row] = [
        {"parameters": 2_500_000, "gflops": 4.5, "gains": {"real": {"a": 1.0, "b": 3.0}}},
        {"parameters": 1_000_000, "gflops": 9.0, "gains": {"real": {"a": 0.5, "b": 2.3}}},
    ]
    measured = [
        {"one: int8": [10 * s], "one: eager": [30 * s], "another: int8": [25 * s]}
        | {"another: eager": [50 * s]}
        for s in (1.0, 2.0, 8.0)
    ]
    manifests = [manifest(2_000_000, 1, 1.0), manifest(1_000_000, 3, 0.9)]
    first, second = cells(search_table(chosen, rows, manifests, measured))
    assert first == {
        "candidate": "one",
        "M parameters": "2.50",
        "GFLOPs": "4.50",
        "int8 MB": "2.00",
        "delegate calls, share": "1, 100.0 %",
        "int8 ms": "20.0",
        "× first": "1.00",
        "eager fp32 / int8": "3.00",
        "real: over copy, dB": "+2.00",
        "against first": "–",
    }
    assert second["delegate calls, share"] == "3, 90.0 %"
    assert (second["int8 ms"], second["× first"]) == ("50.0", "2.50")
    assert second["eager fp32 / int8"] == "2.00"
    assert second["against first"] == "-0.60 ± 0.10"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--only", "none"], "no candidate 'none': choose from one, another"),
        (["--real", "no-such-folder"], "no-such-folder is not a folder"),
        (["--photos", "no-such-folder"], "no-such-folder"),
        (["--steps", "0"], "--steps is 0, at least 1 is needed"),
    ],
)
def test_mistakes_are_one_line(
    wrong: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(search, "validation_stacks", lambda: [])
    with pytest.raises(SystemExit) as stop:
        main([*wrong, "--scenes", "1", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_arguments_that_the_student_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CANDIDATES", {"odd": {"wings": 2}})
    with pytest.raises(UserError, match=r"candidate odd: .*wings"):
        candidates([], 1, "")


def test_it_trains_exports_and_times_once_and_goes_on(
    exported: Callable[[Sequence[str]], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file to time is the one that other tests export, of a student of this size."""
    made = exported([FILES[INT8][1]])

    def copied(student: Path, request: Export, log: Any) -> Manifest:
        assert load_student(student).photo_size == (64, 64)
        assert (request.targets, request.precisions) == (["executorch"], ["int8"])
        there = request.out / "executorch"
        shutil.copytree(made / "executorch", there, dirs_exist_ok=True)
        return load_manifest(made)

    monkeypatch.setattr(search, "export_run", copied)
    held_out = RenderedScenes([1_000_000], (64, 64)).load(0)
    monkeypatch.setattr(search, "validation_stacks", lambda: [held_out])
    out = tmp_path / "out"
    command = ["--scenes", "2", "--steps", "2", "--threads", "1", "--out", str(out)]
    command += ["--file", EAGER, "--only", "one"]
    times = iter(range(1, 100))

    def stopped(files: Any, calls: int, first: int, last: int, threads: int | None) -> Any:
        for number in range(first, last):
            if number == 1 and first == 0:
                raise KeyboardInterrupt
            yield {file.name: [float(next(times))] * calls for file in files}

    with monkeypatch.context() as patch:
        patch.setattr(search, "rounds", stopped)
        with pytest.raises(KeyboardInterrupt):
            main([*command, "--rounds", "2"])
    (kept,) = out.glob("latency-*.json")
    first = read_json(kept)["rounds"]
    assert [list(made) for made in first] == [["one: int8", "one: eager"]]

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr(search, "train", never)
    monkeypatch.setattr(search, "gains", never)
    capsys.readouterr()
    main([*command, "--rounds", "2"])
    table = capsys.readouterr().out
    measured = read_json(kept)["rounds"]
    assert measured[0] == first[0] and len(measured) == 2
    monkeypatch.setattr(search, "rounds", lambda *a: never() if a[2] < a[3] else iter(()))
    main([*command, "--rounds", "2"])
    assert capsys.readouterr().out == table
    assert (out / "search.md").read_text() == table
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    (shown,) = cells(table)
    assert shown["candidate"] == "one" and shown["× first"] == "1.00"
    (path,) = out.glob("one-*.json")
    row = read_json(path)
    assert shown["rendered: over copy, dB"] == f"{fmean(row['gains']['rendered'].values()):+.2f}"
    assert float(shown["delegate calls, share"].split(",")[0]) >= 1
    assert shown["eager fp32 / int8"] == f"{ratio(measured, 'one: eager', 'one: int8'):.2f}"
    assert not (path.with_suffix("") / FILES["fp32"][1]).exists(), "it was not asked for"
