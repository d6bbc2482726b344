"""The tables of docs/quantization.md: `python -m pocketfocus.research.quantization DIR`.

DIR is a run that was exported and verified: a line a file, and the layers that a backend took
otherwise than the recipe asks. What files lose against true stacks is there after
`python -m pocketfocus.research.losses DIR …`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pocketfocus.benchmarks.gates import SAME_FILE, parity_rows
from pocketfocus.benchmarks.tables import figure, markdown
from pocketfocus.benchmarks.verify import VERIFY_FILE
from pocketfocus.mobile_harness.device import HOST
from pocketfocus.mobile_harness.devices import fallback_of
from pocketfocus.research.losses import LOSSES_FILE, Loss
from pocketfocus.run.errors import reported
from pocketfocus.run.manifest import Artifact, load_manifest
from pocketfocus.run.results import VerifyRow
from pocketfocus.run.rows import read_current, read_rows

FLOAT = "fp32"


def files_table(
    artifacts: Sequence[Artifact], verify: Sequence[VerifyRow], losses: Sequence[Loss] = ()
) -> str:
    """Show the bytes of every file, its share of the target's fp32 file, parity here and of every
    other device with this host, what it loses against true stacks of every source, and bits of its
    layers."""
    sources = list(dict.fromkeys(row.stacks for row in losses))
    lost = {(row.artifact, row.stacks): row for row in losses}
    rows = parity_rows(verify)
    gates = {r.artifact: r for r in rows if r.device in (HOST, fallback_of(r.target))}
    elsewhere = {(row.artifact, row.device): row for row in rows if row.gate.startswith(SAME_FILE)}
    others = sorted({device for _, device in elsewhere})
    whole = {a.target: a.bytes for a in artifacts if a.precision == FLOAT}
    lines = []
    for artifact in artifacts:
        gate, floats = gates.get(artifact.name), whole.get(artifact.target)
        bits = Counter(row["bits"] for row in artifact.applied.get("layers", {}).values())
        lines.append(
            [
                f"`{artifact.name}`",
                figure(artifact.bytes / 1e6, 2),
                "–" if not floats else figure(artifact.bytes / floats, 3),
                gate_cell(gate),
                *(gate_cell(elsewhere.get((artifact.name, device))) for device in others),
                *(loss_cell(lost.get((artifact.name, source))) for source in sources),
                ", ".join(f"{n} × {b}" for b, n in sorted(bits.items(), reverse=True)) or "–",
            ]
        )
    heads = ["file", "MB", "of fp32", "worst output, dB"]
    heads += [f"{device} against host, dB" for device in others]
    heads += [f"loss on {source}, dB" for source in sources]
    return markdown([*heads, "layers × bits"], lines)


def gate_cell(row: VerifyRow | None) -> str:
    """Show parity, and whether it passed; a file that could not be executed has none."""
    return "–" if row is None else f"{figure(row.psnr_db)} {row.status}"


def loss_cell(row: Loss | None) -> str:
    """Show what a file loses, and how that was judged where there is a limit."""
    if row is None:
        return "–"
    judged = "" if row.most_db is None else f" {row.status}"
    return f"{figure(round(row.loss_db, 3) + 0.0, 3)}{judged}"  # never "-0.000"


def differences_table(artifacts: Sequence[Artifact]) -> str:
    """Return how many layers of every file are not kept as requested, by the reason."""
    lines = []
    for artifact in artifacts:
        rows = artifact.applied.get("layers", {}).values()
        reasons = Counter(row["why"] for row in rows if "why" in row)
        lines += [[f"`{artifact.name}`", str(n), why] for why, n in reasons.most_common()]
    return markdown(["file", "layers", "why they are not as asked"], lines)


@reported("quantization")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables of a run."""
    parser = argparse.ArgumentParser(description="sizes, parity and differences of a run's files")
    parser.add_argument("run", type=Path, help="after export and verify")
    folder: Path = parser.parse_args(arguments).run
    manifest = load_manifest(folder)
    artifacts = manifest.artifacts
    verify = read_current(folder / VERIFY_FILE, VerifyRow, manifest.hashes_in(folder))
    losses = folder / LOSSES_FILE
    lost = read_rows(losses, Loss) if losses.exists() else []
    print(files_table(artifacts, verify, lost), "", differences_table(artifacts), sep="\n")


if __name__ == "__main__":
    main()
