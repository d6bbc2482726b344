"""The README's tables, from a run's own files: `python -m pocketfocus.benchmarks.tables DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from pocketfocus.benchmarks.evaluate import EVALUATE_FILE
from pocketfocus.benchmarks.gates import parity_rows
from pocketfocus.benchmarks.latency import BENCH_FILE, ratios
from pocketfocus.benchmarks.verify import VERIFY_FILE
from pocketfocus.mobile_harness.device import HOST, MIL_CHECK
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import Row, read_rows


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, figures to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def difference(values: Sequence[float]) -> str:
    """Mean of paired differences and, of more than one, its standard error."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{fmean(values):+z.2f}{error}"


def figure(value: float | None, digits: int = 1) -> str:
    """A number with fixed digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def files_table(bench: Sequence[Row], verify: Sequence[Row]) -> str:
    """Size, latency, speed-ups and parity, one line an artifact."""
    faster = {(r.artifact, r.device): r for r in ratios(bench)}
    gates = {(r["artifact"], r["device"]): r for r in parity_rows(verify)}

    def line(row: Row) -> list[str]:
        name, device = row["artifact"], row["device"]
        ratio, gate = faster.get((name, device)), gates.get((name, device))
        if gate is None and device == HOST:
            gate = gates.get((name, MIL_CHECK))
        if name == "student":
            gate = None
        mib = None if row["bytes"] is None else row["bytes"] / 2**20
        return [
            f"`{name}`" + (f" on {device}" if device != HOST else ""),
            figure(mib, 2),
            figure(row["p50_ms"]),
            figure(row["p99_ms"]),
            figure(row["peak_rss_mib"], 0),
            figure(ratio.to_reference if ratio else None, 0),
            figure(ratio.to_published if ratio else None, 0),
            figure(ratio.to_student if ratio else None, 2),
            "–" if gate is None else f"{figure(gate['psnr_db'])} {gate['status']}",
        ]

    header = [
        "file",
        "MiB",
        "p50 ms",
        "p99 ms",
        "peak MiB",
        "× reference",
        "× its 25 steps",
        "× student",
    ]
    return markdown([*header, "parity, dB"], map(line, bench))


def quality_table(rows: Sequence[Row]) -> str:
    """Means against true stacks, one line a model, PSNR by distance d beside them."""
    means = [row for row in rows if "mean_psnr_db" in row]
    distances = sorted({d for row in means for d in row["psnr_db_by_distance"]}, key=int)
    header = ["model", "stacks", "PSNR", "SSIM", "PSNR d>0", *[f"d={d}" for d in distances]]
    lines = [
        [
            row["model"],
            row["stacks"],
            figure(row["mean_psnr_db"], 2),
            figure(row["mean_ssim"], 3),
            figure(row["mean_psnr_db_off_diagonal"], 2),
            *[figure(row["psnr_db_by_distance"].get(d)) for d in distances],
        ]
        for row in means
    ]
    return markdown(header, lines)


@reported("tables")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print every table that a run's files hold."""
    parser = argparse.ArgumentParser(description="the README's tables of a run")
    parser.add_argument("run", type=Path, help="after bench and verify, or evaluate")
    folder: Path = parser.parse_args(arguments).run
    if not any((folder / name).exists() for name in (BENCH_FILE, EVALUATE_FILE)):
        raise UserError(
            f"{folder} holds neither {BENCH_FILE} nor {EVALUATE_FILE}: run `pocketfocus verify` "
            "and `bench`, or `evaluate`, first"
        )
    if (folder / BENCH_FILE).exists():
        print(files_table(read_rows(folder / BENCH_FILE), read_rows(folder / VERIFY_FILE)))
    if (folder / EVALUATE_FILE).exists():
        print("\n" + quality_table(read_rows(folder / EVALUATE_FILE)))


if __name__ == "__main__":
    main()
