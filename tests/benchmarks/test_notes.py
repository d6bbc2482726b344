"""What devices tell besides times, in the report's words and in its plot."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pocketfocus.benchmarks.charts import sustained_chart
from pocketfocus.benchmarks.notes import notes_rows, throttles
from pocketfocus.run.results import Notes, Operator, Trend
from tests.benchmarks.rows import bench_row


def sustained(slower: float | None, runs: int = 100, **more: Any) -> Trend:
    course = ((1.0, 5.0), (2.0, 9.0))
    about = {"seconds": 60.0, "first_p50_ms": 5.0, "last_p50_ms": 9.0, "course": course, **more}
    return Trend(runs=runs, slower=slower, **about)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (sustained(1.1), "steady"),
        (sustained(0.8), "steady"),
        (sustained(1.11), "slows down"),
        (sustained(2.0, runs=9), "too few calls (9)"),
        (sustained(None), "not run"),
        (None, "not run"),
    ],
)
def test_throttling_is_said_only_where_calls_tell(given: Trend | None, words: str) -> None:
    assert throttles(given) == words


def test_rows_of_other_devices_are_no_browsers() -> None:
    assert not bench_row().is_of_browser
    assert bench_row(sustained=None).is_of_browser and bench_row(sustained=sustained(1.0))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that was saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures


def test_the_plot_has_a_line_a_sustained_run(drawn: list[Figure]) -> None:
    """Its own: seconds and ms of every device and file, in view, in a colour of its own."""
    courses = {
        ("a.onnx", "phone"): ((1.0, 5.0), (2.0, 9.0)),
        ("b.onnx", "phone"): ((1.0, 6.0), (3.0, 6.5), (9.0, 7.0)),
        ("a.onnx", "tablet"): ((0.5, 30.0), (8.0, 31.0)),
    }
    rows = [
        bench_row(artifact=file, device=device, sustained=sustained(1.0, course=course))
        for (file, device), course in courses.items()
    ]
    png = sustained_chart([*rows, bench_row(sustained=None), bench_row()])
    assert png and Image.open(io.BytesIO(png)).width > 400
    ((axes,),) = [figure.axes for figure in drawn]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert len(lines) == len(courses) == len({line.get_color() for line in lines.values()})
    for (file, device), course in courses.items():
        (line,) = [lines[label] for label in lines if file in label and device in label]
        points = np.asarray(line.get_xydata())
        assert points.tolist() == [list(point) for point in course]
        assert line.get_visible() and line.get_linewidth() > 0
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert (points >= (left, low)).all() and (points <= (right, high)).all()
    legend = axes.get_legend()
    assert legend and {text.get_text() for text in legend.get_texts()} == lines.keys()


def test_there_is_no_plot_without_a_sustained_run(drawn: list[Figure]) -> None:
    assert sustained_chart([bench_row(sustained=None)]) is None
    assert drawn == []


def test_notes_in_words() -> None:
    operators = tuple(
        Operator(operator=name, delegated=False, p50_ms=ms)
        for name, ms in (("add", 0.5), ("DELEGATE_CALL", 9.25), ("mul", 1.0), ("cat", 2.0))
    )
    battery = Notes(battery_percent=(80, 79), battery_celsius=(30.0, 34.5), operators=operators)
    plan = Notes(compute_plan={"Neural Engine": 40, "CPU": 2})
    phone, iphone = notes_rows([bench_row(notes=battery), bench_row(notes=plan), bench_row()])
    assert phone.battery == "80 → 79 %, 30 → 34.5 °C"
    assert phone.operators == "DELEGATE_CALL 9.25 ms, cat 2 ms, mul 1 ms"
    assert (iphone.battery, iphone.plan) == ("", "Neural Engine: 40, CPU: 2")
