"""Rows in files: devices replace their own, none outlives its files, a wrong one is named."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, write_json
from pocketfocus.run.results import BenchRow, Notes, Operator, Trend, VerifyRow
from pocketfocus.run.rows import FileRow, Row, merge_rows, read_rows, write_rows
from tests.benchmarks.rows import bench_row, verify_row

FILES = {"a.pte": "1" * 64, "b.pte": "2" * 64, "a": "3" * 64}


def row(device: str, figure: float, artifact: str = "a.pte", sha256: str = "") -> BenchRow:
    own = sha256 or FILES.get(artifact)
    return bench_row(artifact=artifact, device=device, p50_ms=figure, sha256=own)


def test_a_device_replaces_its_own_rows_and_keeps_those_of_others(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    for rows, device in (
        ([row("host", 1.0), row("host", 2.0, "gone.pte")], "host"),
        ([row("phone", 3.0)], "phone"),
        ([row("host", 4.0)], "host"),
    ):
        merge_rows(path, BenchRow, rows, [device], FILES)
    assert read_rows(path, BenchRow) == [row("phone", 3.0), row("host", 4.0)]


def test_rows_go_with_the_files_they_tell_of_whatever_the_clock_says(tmp_path: Path) -> None:
    """Of a run that was copied, whose clock was set back, to which a file was added: all stay."""
    path = tmp_path / "bench.json"
    others = [row("phone", 1.0), row("phone", 2.0, "b.pte"), row("host", 3.0, "reference")]
    gone = [row("phone", 4.0, "gone.pte", "4" * 64), row("tablet", 5.0, "b.pte", "5" * 64)]
    write_rows(path, [*others, *gone, bench_row(artifact="a.pte", device="old", p50_ms=6.0)])
    for seconds in (1, 2**31):
        os.utime(path, (seconds, seconds))
        merge_rows(path, BenchRow, [row("board", 7.0)], ["board"], FILES)
        assert read_rows(path, BenchRow) == [*others, row("board", 7.0)]


def merged_elsewhere(path: Path, device: str) -> None:
    for turn in range(20):
        merge_rows(path, BenchRow, [row(device, float(turn))], [device], FILES)


def test_processes_that_merge_at_once_lose_no_row(tmp_path: Path) -> None:
    path, names = tmp_path / "bench.json", ["a", "b", "c"]
    write_rows(path, [])
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=merged_elsewhere, args=(path, name)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = {each.device: each.p50_ms for each in read_rows(path, BenchRow)}
    assert found == dict.fromkeys(names, 19.0)


def test_gates_of_one_file_and_device_stand_beside_each_other(tmp_path: Path) -> None:
    path, own = tmp_path / "verify.json", {"device": "phone", "sha256": FILES["a"]}
    first, other = verify_row(**own), verify_row(**own, gate="delegate coverage")
    for each in (first, other, verify_row(**own, psnr_db=1.0)):
        merge_rows(path, VerifyRow, [each], [], FILES)
    assert read_rows(path, VerifyRow) == [other, verify_row(**own, psnr_db=1.0)]


FULL = [
    bench_row(
        notes=Notes(
            battery_percent=(80, 79),
            battery_celsius=(30.0, 31.5),
            operators=(Operator(operator="add", delegated=False, p50_ms=0.5),),
        )
    ),
    bench_row(
        notes=Notes(compute_plan={"CPU": 2}),
        cores=None,
        sustained=Trend(
            seconds=1.0,
            runs=2,
            first_p50_ms=1.0,
            last_p50_ms=2.0,
            slower=None,
            course=((1.0, 2.0),),
        ),
    ),
]


def test_optional_fields_are_written_where_they_were_given_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_rows(path, [*FULL, bench_row()])
    content: list[dict[str, Any]] = read_json(path)["rows"]
    assert [sorted(each.keys() & {"notes", "cores", "sustained"}) for each in content] == [
        ["notes"],
        ["cores", "notes", "sustained"],
        [],
    ]
    assert sorted(content[0]["notes"]) == ["battery_celsius", "battery_percent", "operators"]
    found = read_rows(path, BenchRow)
    assert found == [*FULL, bench_row()]
    write_rows(path, found)
    assert read_json(path)["rows"] == content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p50_ms": "fast"}, "row 2, p50_ms: Input should be a valid number"),
        ({"runs": 1.5}, "row 2, runs: Input should be a valid integer"),
        ({"status": "ready"}, "row 2, status: Input should be"),
        ({"ms": 1.0}, "row 2, ms: Extra inputs are not permitted"),
        ({"notes": {"battery_percent": [1]}}, "row 2, notes.battery_percent.1: Field required"),
        ({"why": ...}, "row 2, why: Field required"),
        ({"os": ...}, "row 2, os: Field required"),
    ],
)
def test_a_wrong_row_is_one_line_with_file_row_and_field(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    good = bench_row().as_json()
    wrong = {name: value for name, value in {**good, **change}.items() if value is not ...}
    write_json(tmp_path / "bench.json", {"rows": [good, wrong]})
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path / "bench.json", BenchRow)
    line = str(caught.value)
    assert f"bench.json, {said}" in line and line.endswith("run the stage that writes it")
    assert "\n" not in line


@pytest.mark.parametrize("content", ["a row", None, 7, ["artifact"]])
def test_what_is_no_row_at_all_is_one_line(content: object, tmp_path: Path) -> None:
    write_json(tmp_path / "bench.json", {"rows": [content]})
    with pytest.raises(UserError, match=r"bench\.json, row 1, all of it: .*: delete the file"):
        read_rows(tmp_path / "bench.json", BenchRow)


def test_a_file_without_rows_is_one_line(tmp_path: Path) -> None:
    write_json(tmp_path / "bench.json", {"artifacts": []})
    with pytest.raises(UserError, match=r"bench\.json holds no rows: delete it"):
        read_rows(tmp_path / "bench.json", BenchRow)


def test_every_kind_of_row_takes_nothing_unknown_and_changes_nothing() -> None:
    """Of the package: a kind that is added is held to it as well."""
    import pocketfocus.benchmarks.evaluate
    import pocketfocus.quantize.sensitivity  # noqa: F401

    kinds, left = set[type[Row]](), [Row]
    while left:
        kind = left.pop()
        kinds.add(kind)
        left += kind.__subclasses__()
    assert {"BenchRow", "VerifyRow", "GateRow", "Cell", "Means", "Sensitivity"} <= {
        kind.__name__ for kind in kinds
    }
    for kind in kinds - {FileRow}:
        config = kind.model_config
        assert (config["extra"], config["strict"], config["frozen"]) == ("forbid", True, True)
