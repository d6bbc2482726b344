"""The README's tables, from a run's own files: `python -m pocketfocus.benchmarks.tables DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pocketfocus.benchmarks.baselines import COPY
from pocketfocus.benchmarks.evaluate import ROUNDING_DB
from pocketfocus.benchmarks.evaluation import EVALUATE_FILE, Means, evaluation_of, read_evaluation
from pocketfocus.benchmarks.gates import parity_rows
from pocketfocus.benchmarks.latency import BENCH_FILE, ratios
from pocketfocus.benchmarks.verify import VERIFY_FILE
from pocketfocus.mobile_harness.device import HOST
from pocketfocus.mobile_harness.devices import fallback_of
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.manifest import MANIFEST_FILE, load_manifest
from pocketfocus.run.results import BenchRow, VerifyRow
from pocketfocus.run.rows import read_current

WHERE_SHARPER = ("where sharper", "restored")
IF_THERE = ("LPIPS", "DISTS", "FID", "no worse than reference")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, first column to the left, figures to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: float | None, digits: int = 1) -> str:
    """Return a number with fixed digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def files_table(bench: Sequence[BenchRow], verify: Sequence[VerifyRow]) -> str:
    """Show size, latency, speed-ups and parity, one line an artifact."""
    faster = {(r.artifact, r.device): r for r in ratios(bench)}
    gates = {(r.artifact, r.device): r for r in parity_rows(verify)}

    def line(row: BenchRow) -> list[str]:
        name, device = row.artifact, row.device
        ratio, gate = faster.get((name, device)), gates.get((name, device))
        if gate is None and device == HOST:
            gate = gates.get((name, fallback_of(row.target)))
        if name == "student":
            gate = None
        mib = None if row.bytes is None else row.bytes / 2**20
        return [
            f"`{name}`" + (f" on {device}" if device != HOST else ""),
            figure(mib, 2),
            figure(row.p50_ms),
            figure(row.p99_ms),
            figure(row.peak_rss_mib, 0),
            figure(ratio.to_reference if ratio else None, 0),
            figure(ratio.to_published if ratio else None, 0),
            figure(ratio.to_student if ratio else None, 2),
            "–" if gate is None else f"{figure(gate.psnr_db)} {gate.status}",
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


def distance_table(means: Sequence[Means]) -> str:
    """Show PSNR off the diagonal, its gain over copy with a standard error, SSIM, and PSNR by d."""
    distances = sorted({d for row in means for d in row.psnr_db_by_distance}, key=int)
    header = ["model", "stacks", "scenes", "PSNR d>0", "over copy", "SSIM d>0", *WHERE_SHARPER]
    lines = [
        [
            row.model,
            row.stacks,
            str(row.scenes),
            figure(row.mean_psnr_db_off_diagonal, 2),
            gain(row),
            figure(row.mean_ssim_off_diagonal, 3),
            *where_sharper(row),
            *[figure(row.psnr_db_by_distance.get(d)) for d in distances],
        ]
        for row in means
    ]
    return markdown([*header, *[f"d={d}" for d in distances]], lines)


def print_table(means: Sequence[Means], console: Console | None = None) -> None:
    """Print the means, a column a model: off the diagonal, its difference to copy, by distance."""
    distances = sorted({int(d) for row in means for d in row.psnr_db_by_distance})
    stacks = ", ".join(dict.fromkeys(f"{row.stacks} ({row.scenes} scenes)" for row in means))
    table = Table(
        title=f"Against the true focal stacks of {stacks}, PSNR in dB",
        caption="d: positions between photo and frame. pooled: of the squared error of a pair's "
        "images, as Learn2Refocus publishes it. over copy: than repeating the photo, and its "
        "standard error. where sharper: the same where the truth is sharper than the photo; "
        "restored: the share of the detail missing there. in focus: patches whose sharpest frame "
        f"is the true one, and by how many positions it is off. no worse than: the share of images "
        "whose PSNR is at least that of the photo repeated, or of the reference. Per image at most "
        f"{ROUNDING_DB:.1f} dB.",
    )
    table.add_column("", no_wrap=True)
    for row in means:
        table.add_column(row.model, justify="right", overflow="fold")
    figures: dict[str, Callable[[Means], str]] = {
        "d > 0": lambda row: figure(row.mean_psnr_db_off_diagonal, 2),
        "pooled": lambda row: figure(row.pooled_psnr_db_off_diagonal, 2),
        "over copy": gain,
        "SSIM": lambda row: figure(row.mean_ssim_off_diagonal, 3),
        "where sharper": lambda row: where_sharper(row)[0],
        "restored": lambda row: where_sharper(row)[1],
        "VIF": lambda row: figure(row.mean_vif_off_diagonal, 3),
        "LPIPS": lambda row: figure(row.mean_lpips_off_diagonal, 3),
        "DISTS": lambda row: figure(row.mean_dists_off_diagonal, 3),
        "FID": lambda row: figure(row.fid, 2),
        "no worse than copy": lambda row: percent(row.no_worse_than_copy),
        "no worse than reference": lambda row: percent(row.no_worse_than_reference),
        "in focus": in_focus,
        "with d = 0": lambda row: figure(row.mean_psnr_db, 2),
    }
    for name, of in figures.items():
        shown = list(map(of, means))
        if name not in IF_THERE or set(shown) != {figure(None)}:
            table.add_row(name, *shown)
    for d in distances:
        by_distance = (row.psnr_db_by_distance.get(str(d)) for row in means)
        table.add_row(f"d = {d}", *map(figure, by_distance))
    (console or Console(highlight=False)).print(table)


def gain(row: Means) -> str:
    """Return the gain over copy with its standard error, for a table; neither for copy itself."""
    if row.model == COPY or row.gain_db is None:
        return figure(None)
    error = row.gain_error_db
    return f"{row.gain_db:+z.2f}" + ("" if error is None else f" ± {error:.2f}")


def where_sharper(row: Means) -> list[str]:
    """Return what `WHERE_SHARPER` heads: gain in dB and restored share."""
    gained = row.sharper_gain_db
    return [figure(None) if gained is None else f"{gained:+z.2f}", percent(row.restored)]


def percent(share: float | None) -> str:
    """Return a share in percent, for a table."""
    return figure(None) if share is None else f"{100 * share:z.0f} %"


def in_focus(row: Means) -> str:
    """Return focus accuracy and error, for a table."""
    if row.focus_accuracy is None:
        return figure(None)
    return f"{100 * row.focus_accuracy:.0f} %, {figure(row.focus_error)}"


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
    if not any((folder / name).exists() for name in (BENCH_FILE, MANIFEST_FILE)):
        print(distance_table(read_evaluation(folder / EVALUATE_FILE).means))
        return
    manifest = load_manifest(folder)
    files = manifest.hashes_in(folder)
    if (folder / BENCH_FILE).exists():
        bench = read_current(folder / BENCH_FILE, BenchRow, files)
        print(files_table(bench, read_current(folder / VERIFY_FILE, VerifyRow, files)))
    if (folder / EVALUATE_FILE).exists():
        print("\n" + distance_table(evaluation_of(folder, manifest, files)[0].means))


if __name__ == "__main__":
    main()
