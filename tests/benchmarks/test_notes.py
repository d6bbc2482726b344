"""What devices tell besides times, in the report's words and in its plot."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketfocus.benchmarks.charts import sustained_chart
from pocketfocus.benchmarks.notes import browser_rows, notes_rows


def row(slower: float | None, runs: int = 100, **more: Any) -> dict[str, Any]:
    sustained = {
        "seconds": 60.0,
        "runs": runs,
        "slower": slower,
        "course": [[1.0, 5.0], [2.0, 9.0]],
    }
    about = {"artifact": "a.onnx", "target": "onnx", "device": "phone"}
    return {**about, "sustained": sustained, **more}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (row(1.1), "steady"),
        (row(0.8), "steady"),
        (row(1.11), "slows down"),
        (row(2.0, runs=9), "too few calls (9)"),
        (row(None), "not run"),
        ({**row(1.0), "sustained": None}, "not run"),
    ],
)
def test_throttling_is_said_only_where_calls_tell(given: dict[str, Any], words: str) -> None:
    assert browser_rows([given])[0]["throttles"] == words


def test_rows_of_other_devices_are_no_browsers() -> None:
    assert browser_rows([{"artifact": "a.pte", "device": "host"}]) == []


def test_the_plot_has_a_line_a_sustained_run() -> None:
    def inked(*rows: dict[str, Any]) -> float:
        png = sustained_chart(rows)
        assert png
        return float(np.mean(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) < 250))

    assert sustained_chart([{**row(1.0), "sustained": None}]) is None
    assert inked(row(1.0), row(1.0, artifact="b.onnx")) > inked(row(1.0))


def test_notes_in_words() -> None:
    operators = [
        {"operator": name, "delegated": False, "p50_ms": ms}
        for name, ms in (("add", 0.5), ("DELEGATE_CALL", 9.25), ("mul", 1.0), ("cat", 2.0))
    ]
    battery = {"battery_percent": [80, 79], "battery_celsius": [30.0, 34.5]}
    plan = {"compute_plan": {"Neural Engine": 40, "CPU": 2}}
    phone, iphone = notes_rows(
        [
            {"artifact": "a", "device": "p", "notes": {**battery, "operators": operators}},
            {"artifact": "b", "device": "i", "notes": plan},
            {"artifact": "c", "device": "host"},
        ]
    )
    assert phone.battery == "80 → 79 %, 30 → 34.5 °C"
    assert phone.operators == "DELEGATE_CALL 9.25 ms, cat 2 ms, mul 1 ms"
    assert (iphone.battery, iphone.plan) == ("", "Neural Engine: 40, CPU: 2")
