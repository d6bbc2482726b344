"""The table of docs/full-size.md, from the files of a run of `pocketfocus export --full`.

`python -m pocketfocus.research.full DIR`; `--rewritten` also holds the rewritten UNet and decoder
against diffusers' own, at the size of the run, which takes both in memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pocketfocus.benchmarks.gates import parity_rows
from pocketfocus.benchmarks.tables import figure, markdown
from pocketfocus.benchmarks.verify import VERIFY_FILE
from pocketfocus.export.stage import CHECKS
from pocketfocus.run.errors import reported
from pocketfocus.run.manifest import Artifact, Manifest, load_manifest
from pocketfocus.run.metrics import psnr
from pocketfocus.run.results import VerifyRow
from pocketfocus.run.rows import read_current

REWRITTEN_DB = 90.0


@torch.no_grad()
def rewritten_db(spec: str, folder: Path) -> dict[str, float]:
    """Return PSNR (dB) of the rewritten decoder and UNet against diffusers' own, weights shared."""
    from pocketfocus.mobile.pipeline import rewritten
    from pocketfocus.models.loading import load_reference
    from pocketfocus.models.reference import added_time_ids

    theirs = load_reference(spec)
    ours = rewritten(theirs)
    found: dict[str, float] = {}
    latents = load_file(folder / CHECKS / "decoder.safetensors")["input"]
    expected = theirs.vae.decode(latents, num_frames=len(latents)).sample
    found["decoder"] = ranged(ours.vae.decode(latents, len(latents)).sample, expected)
    sample = load_file(folder / CHECKS / "unet.safetensors")["input"][None]
    embedding = torch.randn(1, 1, theirs.unet.config.cross_attention_dim)
    arguments = (sample, torch.tensor(1.6), embedding, added_time_ids(1, sample))
    expected = theirs.unet(*arguments, return_dict=False)[0]
    found["unet"] = ranged(ours.unet(*arguments)[0], expected)
    return found


def ranged(found: Tensor, expected: Tensor) -> float:
    """Return PSNR (dB) whose peak is the range of what is expected."""
    return psnr(found, expected, float(expected.max() - expected.min()))


def table(manifest: Manifest, rows: Sequence[VerifyRow]) -> str:
    """Return a line for each file: what it took to write, what is in it, and how it runs."""
    gates = {row.artifact: row for row in parity_rows(rows)}
    header = ["file", "M parameters", "MB", "min to write", "GiB to write", "delegated", "calls"]
    header += ["s a call", "GiB to run", "parity, dB"]
    return markdown(header, [line(each, gates[each.name]) for each in manifest.artifacts])


def line(artifact: Artifact, row: VerifyRow) -> list[str]:
    """Return the cells of one file."""
    applied, found = artifact.applied, artifact.delegation
    return [
        f"`{artifact.name}`",
        figure(applied["parameters"] / 1e6),
        figure(artifact.bytes / 1e6, 0),
        figure(sum(applied["seconds"].values()) / 60),
        figure(applied["peak_mib"] / 1024),
        "–" if found is None else f"{100 * found.share:.1f} % of {found.total_ops}",
        "–" if found is None else str(found.calls),
        "–" if row.run_ms is None else figure(row.run_ms / 1000, 2),
        "–" if row.peak_rss_mib is None else figure(row.peak_rss_mib / 1024),
        row.status if row.psnr_db is None else f"{row.psnr_db:.1f} {row.status}",
    ]


@reported("full")
def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run of `pocketfocus export --full`")
    parser.add_argument("--rewritten", action="store_true")
    options = parser.parse_args(arguments)
    manifest = load_manifest(options.folder)
    files = manifest.hashes_in(options.folder)
    print(table(manifest, read_current(options.folder / VERIFY_FILE, VerifyRow, files)))
    if options.rewritten:
        for name, db in rewritten_db(manifest.reference, options.folder).items():
            print(f"{name}, rewritten against diffusers: {db:.1f} dB, {REWRITTEN_DB:g} are needed")


if __name__ == "__main__":
    main()
