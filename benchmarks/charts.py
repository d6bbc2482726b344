"""The report's charts, as PNG bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import matplotlib

from pocketfocus.benchmarks.device import HOST
from pocketfocus.files import Row
from pocketfocus.manifest import Manifest

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

COLOURS = {
    "pytorch": "#888888",
    "executorch": "#d1603d",
    "onnx": "#3d7ea6",
    "coreml": "#7a9e4e",
}


def latency_chart(bench: Sequence[Row]) -> bytes:
    """p50 (bar) to p99 (whisker) of everything that was measured, on a log axis in ms."""
    rows = [row for row in bench if row["p50_ms"] is not None]
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.32 * max(1, len(rows))))
    for y, row in enumerate(rows):
        colour = COLOURS.get(row["target"], "#555555")
        axis.barh(y, row["p50_ms"], color=colour)
        axis.plot([row["p50_ms"], row["p99_ms"]], [y, y], color="black", linewidth=1.2)
        axis.text(row["p99_ms"] * 1.08, y, f"{row['p50_ms']:,.1f}", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
    axis.set(xscale="log", xlabel="ms a stack, p50 (line: to p99), log scale")
    axis.margins(x=0.25)
    axis.invert_yaxis()
    return _png(figure)


def _label(row: Row) -> str:
    """The artifact, and whose figure it is where another device measured it."""
    other = row["device"] != HOST
    return f"{row['artifact']}\n{row['device']}" if other else str(row["artifact"])


def sustained_chart(rows: Sequence[Row]) -> bytes | None:
    """A line a run without a pause: ms a call over its seconds; None when there is none."""
    runs = [row for row in rows if row["sustained"] and row["sustained"].get("course")]
    if not runs:
        return None
    figure, axis = plt.subplots(figsize=(7, 3))
    for row in runs:
        seconds, ms = zip(*row["sustained"]["course"], strict=True)
        axis.plot(seconds, ms, marker=".", markersize=3, linewidth=1.2, label=_label(row))
    axis.set(xlabel="seconds without a pause", ylabel="ms a stack")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return _png(figure)


def size_chart(manifest: Manifest) -> bytes:
    """MiB of every file."""
    files = [a for a in manifest.artifacts if a.bytes]
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.32 * max(1, len(files))))
    for y, artifact in enumerate(files):
        mib = artifact.bytes / 2**20
        axis.barh(y, mib, color=COLOURS.get(artifact.target, "#555555"))
        axis.text(mib, y, f" {mib:.2f}", va="center", fontsize=8)
    axis.set_yticks(range(len(files)), [a.name for a in files], fontsize=8)
    axis.set(xlabel="MiB")
    axis.margins(x=0.15)
    axis.invert_yaxis()
    return _png(figure)


def data_uri(png: bytes) -> str:
    """PNG bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()
