"""The report: what it says of a run's files, and how it behaves in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pocketfocus.benchmarks import charts
from pocketfocus.benchmarks.checks import Pixels, save_stacks
from pocketfocus.benchmarks.evaluation import Cell
from pocketfocus.benchmarks.measured import stacks_of
from pocketfocus.benchmarks.report import headline, render, unproven, write_report
from pocketfocus.benchmarks.tables import files_table
from pocketfocus.data.optics import distance
from pocketfocus.run.constants import FIRST_LOOK
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256
from pocketfocus.run.manifest import Artifact, Delegation, Manifest, load_manifest
from pocketfocus.run.results import BenchRow, VerifyRow
from pocketfocus.run.rows import F, read_rows, write_rows
from tests.benchmarks.rows import bench_row, verify_row

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PTE, MLPACKAGE = "executorch/student-int8.pte", "coreml/student-int8.mlpackage"
WHY = "Core ML predicts on macOS only"


def timed(artifact: str, target: str, p50: float | None) -> BenchRow:
    return bench_row(
        artifact=artifact,
        target=target,
        precision="int8" if "int8" in artifact else "fp32",
        threads=2,
        load_ms=1.0,
        first_ms=p50,
        p50_ms=p50,
        p90_ms=p50,
        p99_ms=p50,
        runs=5,
        peak_rss_mib=300.0,
        bytes=2**20,
    )


BENCH = [
    timed("reference", "pytorch", 20_000.0),
    timed("student", "pytorch", 50.0),
    timed(PTE, "executorch", 12.5),
    timed(MLPACKAGE, "coreml", None),
]


def gate_row(artifact: str, status: str, psnr: float | None, why: str = "") -> VerifyRow:
    target = artifact.split("/")[0]
    return verify_row(artifact=artifact, target=target, psnr_db=psnr, status=status, why=why)


VERIFY = [gate_row(PTE, "pass", 49.0), gate_row(MLPACKAGE, "not-run", None, WHY)]


def of(row: F, files: Mapping[str, str]) -> F:
    """The row with the hash of its file."""
    return row.model_copy(update={"sha256": files.get(row.artifact)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder whose stacks brighten from frame to frame."""
    path = tmp_path_factory.mktemp("run")
    delegation = Delegation(1, 99, 100, 0.99, ("aten.mean.dim",))
    for name in (PTE, f"{MLPACKAGE}/weights"):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_text(name)
    hashes = [sha256(path / name) for name in (PTE, MLPACKAGE)]
    files = [
        Artifact(PTE, "executorch", "int8", hashes[0], 2**20, delegation=delegation),
        Artifact(MLPACKAGE, "coreml", "int8", hashes[1], 2**20, applied={"note": "<b>W8A8</b>"}),
    ]
    Manifest((32, 32), files, "2" * 64, reference="default", tools={"torch": "2.13.0"}).save(path)
    own = {"student": "2" * 64, PTE: hashes[0], MLPACKAGE: hashes[1]}
    for name, rows in (("verify.json", VERIFY), ("bench.json", BENCH)):
        write_rows(path / name, [of(row, own) for row in rows])
    frames = np.full((9, 32, 32, 3), 25 * np.arange(9).reshape(9, 1, 1, 1), np.uint8)
    save_stacks(path / "stacks.npz", {"photo": frames[4], "student": frames, PTE: frames})
    save_stacks(path / "reference.npz", {"photo": frames[4], "reference": frames})
    Image.fromarray(frames[4]).save(path / FIRST_LOOK)
    write_report(path)
    return path


def test_says_what_the_files_say(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (
        "1 gates passed",
        "1 not run",
        WHY,
        "1,600×",
        "4.0×",
        "aten.mean.dim",
        "leaves the ranges",
        f"Not proven on Apple hardware</span>: {MLPACKAGE}.",
    ):
        assert text in page, text
    assert "&lt;b&gt;W8A8" in page, "text from files is escaped"
    loaded = re.findall(r"(?:src=|<link[^>]*href=|url\()[\"']?(\w+:)?//", page)
    assert not loaded, "self-contained: links may lead out, nothing is fetched"


def test_headline_counts_only_what_passed() -> None:
    failed = [gate_row(PTE, "fail", 20.0)]
    assert headline(BENCH, VERIFY)[0][0] == "12.5 ms"
    assert headline(BENCH, failed) == []


def test_nine_frames_are_shown_as_what_a_user_waits_for(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    known = load_manifest(folder)
    pair = timed("executorch/nine-frames-int8", "executorch", 512.0)
    row = of(pair.model_copy(update={"photo": (960, 1280)}), known.hashes)
    facts = headline([*BENCH, row], VERIFY)
    assert (
        "512 ms",
        "nine frames of 1280x960 pixels (executorch/nine-frames-int8), p50 on host",
    ) in facts
    assert headline([*BENCH, row], [gate_row(PTE, "fail", 20.0)]) == []
    write_rows(tmp_path / "run" / "bench.json", [*read_rows(folder / "bench.json", BenchRow), row])
    page = render(tmp_path / "run")
    assert "a photo of 1280x960 pixels scaled and analysed once" in page
    assert "analysed once" not in render(folder)


@pytest.mark.parametrize("slowest", [300.0, 30_000.0])
def test_the_axis_of_latency_has_numbers(monkeypatch: pytest.MonkeyPatch, slowest: float) -> None:
    """Within a decade and over several: formulas are drawn as they are written."""
    drawn: list[Figure] = []
    monkeypatch.setattr(charts, "_png", drawn.append)
    charts.latency_chart([timed(PTE, "executorch", 100.0), timed("onnx/a.onnx", "onnx", slowest)])
    (axis,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    labels = [*axis.get_xticklabels(), *axis.get_xticklabels(minor=True)]
    assert len(labels) > 1 and all(float(label.get_text()) > 0 for label in labels)


def test_what_was_not_measured_says_why(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    rows = read_rows(folder / "bench.json", BenchRow)
    gone = [
        bench_row(artifact=name, target="", status="not-run", why=f"{why} < all")
        for name, why in (("reference@25", "slow"), ("reference@50", "slow"), ("reference", "gone"))
    ]
    write_rows(tmp_path / "run" / "bench.json", [*rows, *gone])
    page = render(tmp_path / "run")
    assert "Not measured: reference@25, reference@50 (slow &lt; all)." in page
    assert "Not measured: reference (gone &lt; all)." in page


def test_what_passed_in_a_devices_place_alone_is_not_proven_on_it(folder: Path) -> None:
    files = load_manifest(folder).files
    checked = gate_row(MLPACKAGE, "pass", 49.0).model_copy(update={"device": "mil-check"})
    phone = checked.model_copy(update={"device": "iphone"})
    failed = phone.model_copy(update={"status": "fail"})
    assert unproven(files, [*VERIFY, checked, failed]) == {"Apple": [MLPACKAGE]}
    assert unproven(files, [*VERIFY, checked, phone]) == {}


def test_positions_in_words() -> None:
    assert [distance(p) for p in (0, 4, 8)] == ["5 cm", "10 cm", "infinity"]


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "bench.json").unlink()
    with pytest.raises(UserError, match=r"bench\.json is missing"):
        render(tmp_path / "run")


@pytest.mark.parametrize("name", [PTE, MLPACKAGE])
def test_a_file_that_is_gone_is_not_reported_of(name: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / name).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{Path(name).name} is missing, the manifest lists it"):
        render(tmp_path / "run")


def test_what_gave_nothing_to_judge_is_no_pass_and_no_failure(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    rows = [gate_row(PTE, "error", None, "died of SIGBUS"), *VERIFY[1:]]
    files = load_manifest(folder).hashes
    write_rows(tmp_path / "run" / "verify.json", [of(row, files) for row in rows])
    page = render(tmp_path / "run")
    assert "0 gates passed" in page and ">0 failed" in page and "1 gave nothing to judge" in page


def test_rows_of_other_files_are_left_out_and_said_to_be(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "run")
    files = load_manifest(folder).hashes | {PTE: "0" * 64}
    for name, rows in (("verify.json", VERIFY), ("bench.json", BENCH)):
        write_rows(tmp_path / "run" / name, [of(row, files) for row in rows])
    page = render(tmp_path / "run")
    assert "1 gates passed" not in page and "12.5" not in page
    said = capsys.readouterr().err.replace("\n", "")
    assert "verify.json: 1 of 2 rows left out" in said and "bench.json: 1 of 4 rows" in said


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("2" * 64, "focused far</figcaption>"),
        ("3" * 64, "(made by student 333333333333, which was there before this one)"),
        ("", "(made by a student that is not recorded)"),
    ],
)
def test_the_first_picture_says_where_another_student_made_it(
    student: str, said: str, folder: Path, tmp_path: Path
) -> None:
    """`build` makes it before it distills."""
    shutil.copytree(folder, tmp_path / "run")
    picture = Image.new("RGB", (96, 32))
    picture.save(tmp_path / "run" / FIRST_LOOK, comment=student.encode())
    page = render(tmp_path / "run")
    assert said in page
    assert ("made by" in page) == (student != "2" * 64)


@pytest.mark.parametrize("photo", [{}, {"photo": np.zeros((32, 32, 3), np.uint8)}])
def test_the_reference_is_shown_beside_stacks_of_its_own_photo_alone(
    photo: dict[str, Pixels], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "run")
    assert 'data-name="reference"' in render(tmp_path / "run")
    stack = stacks_of(folder / "reference.npz")["reference"]
    save_stacks(tmp_path / "run" / "reference.npz", {**photo, "reference": stack})
    assert 'data-name="reference"' not in render(tmp_path / "run")
    assert "reference.npz is left out" in capsys.readouterr().err.replace("\n", "")


def test_stacks_of_files_that_were_made_anew_are_not_shown(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    files = load_manifest(folder).hashes | {PTE: "0" * 64}
    rows = [of(row, files) for row in VERIFY]
    write_rows(tmp_path / "run" / "verify.json", rows)
    assert f'data-name="{PTE}"' in render(folder)
    assert f'data-name="{PTE}"' not in render(tmp_path / "run")
    write_rows(tmp_path / "run" / "verify.json", rows[:1])
    assert "data-name=" not in render(tmp_path / "run").replace('data-name="reference"', "")


def test_readme_table_has_a_line_an_artifact() -> None:
    lines = files_table(BENCH, VERIFY).splitlines()
    assert len(lines) == 2 + len(BENCH)
    assert lines[4] == f"| `{PTE}` | 1.00 | 12.5 | 12.5 | 300 | 1600 | – | 4.00 | 49.0 pass |"
    assert lines[5].endswith("– not-run |")


@pytest.fixture
def page(browser: Browser, folder: Path) -> Iterator[Page]:
    opened = browser.new_page()
    opened.goto((folder / "report.html").as_uri())
    yield opened
    opened.close()


@pytest.mark.browser
def test_slider_moves_every_stack_and_one_frame_shows(page: Page) -> None:
    names = page.locator(".stack figcaption").all_inner_texts()
    assert names == ["reference", "student", PTE]

    def shown() -> list[str]:
        frames = page.locator(".stack img").all()
        return [str(f.get_attribute("data-frame")) for f in frames if f.is_visible()]

    assert shown() == ["4"] * 3
    page.locator("#focus").press("ArrowRight")
    assert shown() == ["5"] * 3
    page.locator("#focus").press("End")
    assert shown() == ["8"] * 3
    assert page.locator("#where").inner_text() == "8 · infinity"


@pytest.mark.browser
@pytest.mark.parametrize("size", [(390, 844), (1366, 768)], ids=["phone", "laptop"])
def test_opens_with_pictures_and_fits(size: tuple[int, int], page: Page) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    tops = "(all) => all.map((each) => each.getBoundingClientRect().top)"
    pictures = page.locator(".stack img:not([hidden])").evaluate_all(tops)
    tables = page.locator("table").evaluate_all(tops)
    assert max(pictures) < min(tables)
    (first,) = page.locator("header img").evaluate_all(tops)
    facts = page.locator(".fact").evaluate_all(tops)
    assert facts and first < min(facts)
    assert len(set(facts)) == 1 or size[0] < 1000  # in one row, where there is room
    wide = "(all) => all.map((each) => each.scrollWidth - each.clientWidth)"
    inside = page.locator(".scroll").evaluate_all(wide)
    assert len(inside) == len(tables)
    assert size[0] > 1000 or max(inside) > 0  # some table is wider than a phone, inside its box


def test_a_phones_name_is_no_formula() -> None:
    """Matplotlib reads what stands between two dollar signs as one, and fails where it is none."""
    from pocketfocus.benchmarks.charts import grids_chart, latency_chart, sustained_chart
    from pocketfocus.run.results import Trend

    ends, course = {"first_p50_ms": 1.0, "last_p50_ms": 1.0}, ((0.0, 1.0), (1.0, 1.0))
    trend = Trend(seconds=1.0, runs=2, **ends, slower=1.0, course=course)
    named = bench_row(device="$\\frac$ phone$", p50_ms=1.0, p99_ms=2.0, sustained=trend)
    assert latency_chart([named]).startswith(b"\x89PNG")
    assert (sustained_chart([named]) or b"").startswith(b"\x89PNG")
    places = {"input_position": 0, "output_position": 1}
    cell = Cell(model="$\\frac$/student", stacks="$\\frac$", **places, psnr_db=30.0, ssim=0.9)
    assert grids_chart([cell]).startswith(b"\x89PNG")
