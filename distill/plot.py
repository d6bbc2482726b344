"""The loss curve of a training, from its JSONL log."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np

from pocketfocus.files import write_atomic

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def loss_plot(log: Path, picture: Path) -> None:
    """Plot loss and PSNR (where logged) over steps, each row faint and its running mean bold."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows]
    series = [name for name in ("loss", "psnr_db") if all(name in row for row in rows)]
    figure, axes = plt.subplots(1, len(series), figsize=(5 * len(series), 3), squeeze=False)
    for axis, name in zip(axes[0], series, strict=True):
        values = np.array([row[name] for row in rows], float)
        width = max(1, len(values) // 20)
        smooth = np.convolve(values, np.ones(width) / width, "valid")
        axis.plot(steps, values, color="tab:blue", alpha=0.25)
        axis.plot(steps[width - 1 :], smooth, color="tab:blue")
        axis.set(xlabel="step", title={"loss": "loss", "psnr_db": "PSNR (dB)"}[name])
    figure.tight_layout()
    with write_atomic(picture) as scratch:
        figure.savefig(scratch, dpi=110, format=picture.suffix[1:])
    plt.close(figure)
