"""The tables of docs/quantization.md: `python -m pocketfocus.benchmarks.quantization DIR`.

DIR is a run that was exported and verified: a line a file, and the layers that a backend took
otherwise than the recipe asks.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pocketfocus.benchmarks.tables import figure, markdown
from pocketfocus.benchmarks.verify import VERIFY_FILE, is_written, parity_rows
from pocketfocus.errors import UserError
from pocketfocus.files import Row, read_rows
from pocketfocus.manifest import Artifact, load_manifest

FLOAT = "fp32"


def files_table(artifacts: Sequence[Artifact], verify: Sequence[Row]) -> str:
    """Bytes of every file, its share of the target's fp32 file, parity, and bits of its layers."""
    gates = {row["artifact"]: row for row in parity_rows(verify)}
    whole = {a.target: a.bytes for a in artifacts if a.precision == FLOAT}
    lines = []
    for artifact in artifacts:
        gate, floats = gates.get(artifact.name), whole.get(artifact.target)
        bits = Counter(row["bits"] for row in artifact.taken.get("layers", {}).values())
        lines.append(
            [
                f"`{artifact.name}`",
                figure(artifact.bytes / 1e6, 2),
                "–" if not floats else figure(artifact.bytes / floats, 3),
                "–" if gate is None else f"{figure(gate['psnr_db'])} {gate['status']}",
                ", ".join(f"{n} × {b}" for b, n in sorted(bits.items(), reverse=True)) or "–",
            ]
        )
    return markdown(["file", "MB", "of fp32", "worst stack, dB", "layers × bits"], lines)


def differences_table(artifacts: Sequence[Artifact]) -> str:
    """How many layers of every file are not kept as asked, by the reason."""
    lines = []
    for artifact in artifacts:
        rows = artifact.taken.get("layers", {}).values()
        reasons = Counter(row["why"] for row in rows if "why" in row)
        lines += [[f"`{artifact.name}`", str(n), why] for why, n in reasons.most_common()]
    return markdown(["file", "layers", "why they are not as asked"], lines)


def main() -> None:
    """Print both tables of the run that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m pocketfocus.benchmarks.quantization DIR")
    folder = Path(sys.argv[1])
    try:
        artifacts = [a for a in load_manifest(folder).artifacts if is_written(a)]
        verify = read_rows(folder / VERIFY_FILE)
    except UserError as error:
        raise SystemExit(f"{error}") from error
    print(files_table(artifacts, verify), "", differences_table(artifacts), sep="\n")


if __name__ == "__main__":
    main()
