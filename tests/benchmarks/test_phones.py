"""The verdicts: limits decide, and nothing is claimed where a figure is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import pytest

from pocketfocus.benchmarks.latency import Bench, bench_run
from pocketfocus.benchmarks.phones import (
    MIB,
    Need,
    Phone,
    fits,
    kinds,
    markdown_table,
    phones,
    verdict,
)
from pocketfocus.benchmarks.report import render
from pocketfocus.benchmarks.samples import read_times
from pocketfocus.export.stage import Export, export_run
from pocketfocus.export.student import MOST_PIXELS, student_network
from pocketfocus.mobile_harness.host import Host
from pocketfocus.models.student import load_student
from pocketfocus.quantize.calibration import Calibration
from pocketfocus.run.constants import Size, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Artifact, Function, Manifest, Rendering, load_manifest
from pocketfocus.run.results import AtSize, BenchRow
from pocketfocus.run.rows import read_rows, write_rows
from tests.benchmarks.rows import bench_row

SOURCES = ("available", "https://example.org", "press", "https://example.org")
IPHONE = Phone("an iPhone", "A0", 4000, 2000, 2400, *SOURCES)
ANDROID = Phone("an Android phone", "T0", 8000, None, None, *SOURCES)


@pytest.mark.parametrize(
    ("phone", "file_mib", "peak", "expected"),
    [
        (IPHONE, 3, 300.0, "fits"),
        (IPHONE, 3, 1400.0, "fits"),
        (IPHONE, 3, 1401.0, "tight"),
        (IPHONE, 3, 2000.0, "tight"),
        (IPHONE, 3, 2000.1, "will be killed"),
        (IPHONE, 3, None, "not known"),
        (IPHONE, 2001, None, "will be killed"),
        (ANDROID, 3, 7999.0, "not known"),
        (ANDROID, 3, 8001.0, "will be killed"),
    ],
)
def test_a_verdict_follows_the_limit(
    phone: Phone, file_mib: int, peak: float | None, expected: str
) -> None:
    assert verdict(phone, file_mib * MIB, peak) == expected


def test_every_phone_of_the_table_has_a_source_and_limits_below_its_memory() -> None:
    table = phones()
    assert len({phone.name for phone in table}) == len(table) > 3
    for phone in table:
        assert urlparse(phone.source).scheme == urlparse(phone.ram_source).scheme == "https"
        assert {phone.kind, phone.ram_kind} <= kinds().keys()
        if phone.limit_mib:
            assert phone.kind in ("kill message", "available", "author"), "a limit, not a brochure"
        assert (phone.limit_mib or 0) <= (phone.entitled_mib or phone.ram_mib) <= phone.ram_mib


def test_the_documents_show_the_table(root: Path) -> None:
    text = (root / "docs/phones.md").read_text(encoding="utf-8")
    assert markdown_table() in text
    for kind, meaning in kinds().items():
        assert f"*{kind}*: {meaning}" in " ".join(text.split())


PTE, ONNX, PACKAGE = "executorch/a-int8.pte", "onnx/a-int8.onnx", "coreml/a-fp16.mlpackage"
OWN: Size = (320, 448)
EIGHT_MEGAPIXELS: Size = (2464, 3264)
PAIR = "executorch/nine-frames-int8"


def manifest(*sizes: Size, side: int = 0) -> Manifest:
    """A run of three files for these photos: methods, any multiple, functions; and what renders."""
    functions = tuple(Function(size_text(size), size) for size in (OWN, *sizes))
    specs = student_network(Path(), OWN, Calibration((), (), ()))

    def file(name: str, **given: object) -> Artifact:
        target, precision = name.partition("/")[0], Path(name).stem.partition("-")[2]
        artifact = Artifact(name, target, precision, name, 3 * MIB, **given)  # type: ignore[arg-type]
        return replace(artifact, inputs=specs.inputs, outputs=specs.outputs)

    files = [
        file(PTE, functions=functions),
        file(ONNX, multiple=32),
        file(PACKAGE, functions=functions),
    ]
    render = Rendering((256, 256), (96, 96), files=[file("executorch/render-fp32.pte")])
    return Manifest(OWN, files, sizes=(OWN, *sizes), render=render)


def peak(name: str, mib: float | None, device: str = "host", **given: object) -> BenchRow:
    target = name.partition("/")[0]
    row = {"artifact": name, "target": target, "bytes": 3 * MIB, "peak_rss_mib": mib}
    return bench_row(device=device, **{**row, **given})


def test_the_largest_measured_peak_of_a_file_decides() -> None:
    rows = [peak(PTE, None), peak(PTE, 5000.0, "phone"), peak(PTE, 9.0, "mac")]
    (found,) = fits(rows, manifest())
    assert (found.device, found.peak_mib) == ("phone", 5000.0)
    assert found.verdicts["iPhone 15 Pro"] == "will be killed"
    assert fits([peak(PTE, 5.0, target="pytorch")], manifest()) == []


def test_a_file_with_a_size_of_8_megapixels_is_judged_by_it() -> None:
    """56 times the pixels: what fits at the usual size does not there."""
    rows = [peak(name, 300.0) for name in (PTE, ONNX)] + [peak(PACKAGE, None)]
    usual = {fit.artifact: fit for fit in fits(rows, manifest())}
    large = {fit.artifact: fit for fit in fits(rows, manifest((448, 320), EIGHT_MEGAPIXELS))}
    assert {usual[name].verdicts["iPhone 15 Pro"] for name in (PTE, ONNX)} == {"fits"}
    assert usual[PTE].largest == Need(OWN, 300.0, "measured")
    more = 2464 * 3264 / (320 * 448)
    for name in (PTE, ONNX):
        need = large[name].largest
        assert (need.size, need.how) == (EIGHT_MEGAPIXELS, "estimated")
        assert need.mib == pytest.approx(3 + 297 * more)
        assert set(large[name].verdicts.values()) == {"will be killed"}
    least = large[PACKAGE].largest  # nothing was measured: 41 values a pixel, in and out
    assert (least.size, least.how) == (EIGHT_MEGAPIXELS, "at least")
    assert least.mib == pytest.approx(43 * 4 * 2464 * 3264 / MIB, rel=0.02)
    assert large[PACKAGE].verdicts["iPhone 15 Pro"] == "not known"
    assert usual[PACKAGE].largest.how == "at least"


def test_what_was_measured_at_a_size_is_not_estimated() -> None:
    size: Size = (448, 640)
    there = AtSize(size=size, p50_ms=9.0, peak_rss_mib=1500.0)
    (found,) = fits([peak(PTE, 300.0, sizes=(there,))], manifest(size))
    assert found.largest == Need(size, 1500.0, "measured")
    assert found.verdicts["iPhone 12 mini"] == "tight"
    own = peak(PTE, 300.0, sizes=(AtSize(size=size, p50_ms=9.0, peak_rss_mib=310.0),))
    assert fits([own], manifest(size))[0].largest == Need(size, 310.0, "measured")


def test_what_died_at_a_size_is_said_and_never_fits() -> None:
    size: Size = (448, 640)
    there = AtSize(size=size, p50_ms=None, peak_rss_mib=None, why="killed: out of memory")
    died = peak(PTE, 300.0, sizes=(there,))
    fine = died.model_copy(update={"device": "other", "sizes": (), "peak_rss_mib": 310.0})
    pair = peak(PAIR, 500.0, photo=(960, 1280))
    for rows in ([died, fine, pair], [fine, died, pair]):
        file, both = fits(rows, manifest(size))
        assert file.largest == Need(size, 300.0, "died there")
        assert both.largest == Need(size, 500.0, "died there")
        assert {*file.verdicts.values(), *both.verdicts.values()} == {"not known"}


def test_nine_frames_need_what_a_larger_size_takes_more() -> None:
    size: Size = (448, 640)
    row = peak(PAIR, 500.0, photo=(960, 1280))
    there = AtSize(size=size, p50_ms=9.0, peak_rss_mib=400.0)
    small = {fit.artifact: fit for fit in fits([row, peak(PTE, 300.0)], manifest())}
    large = {f.artifact: f for f in fits([row, peak(PTE, 300.0, sizes=(there,))], manifest(size))}
    assert small[PAIR].largest == Need((960, 1280), 500.0, "measured")
    assert large[PAIR].largest == Need((960, 1280), 600.0, "estimated")


@pytest.mark.usefixtures("one_process")
def test_the_largest_size_that_export_allows_is_measured_and_judged(
    small_student: Path, tmp_path: Path
) -> None:
    """Twice the pixels of the student's own; more is refused."""
    bound: Size = (64, 128)
    assert math.prod(bound) == MOST_PIXELS * math.prod(load_student(small_student).photo_size)
    request = Export(tmp_path, ["onnx"], ["fp32"], sizes=[bound, (64, 64)])
    export_run(small_student, request, log=lambda line: None)
    with pytest.raises(UserError, match="--sizes 136x64 has more than 2 times the pixels"):
        export_run(small_student, replace(request, sizes=[(64, 136)]), log=lambda line: None)
    rows = bench_run(tmp_path, Host(), Bench(reference=None, runs=2, warmup=0, threads=1))
    name = "onnx/student-fp32.onnx"
    row = next(row for row in rows if row.artifact == name)
    assert [each.size for each in row.sizes] == [bound]
    assert (row.sizes[0].peak_rss_mib or 0) > 50 and (row.sizes[0].p50_ms or 0) > 0
    assert read_rows(tmp_path / "bench.json", BenchRow) == rows
    assert read_times(tmp_path)[name, "host"][0] and row.runs == 2
    found = {fit.artifact: fit for fit in fits(rows, load_manifest(tmp_path))}
    assert found[name].largest.how == "measured"
    assert found[name].largest.mib == max(row.peak_rss_mib or 0, row.sizes[0].peak_rss_mib or 0)
    write_rows(tmp_path / "verify.json", [])
    assert "128x64" in render(tmp_path) or "64x64</td>" in render(tmp_path)
