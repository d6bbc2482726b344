"""Gates and figures of a reference's exported networks (see export/full).

`python -m pocketfocus.benchmarks.full DIR` prints the table of docs/full-size.md from the files of
a run of `pocketfocus export --full`; `--rewritten` also holds the rewritten UNet and decoder
against diffusers' own, at the size of the run, which takes both in memory.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketfocus.benchmarks.tables import figure, markdown
from pocketfocus.benchmarks.verify import (
    VERIFY_FILE,
    Verdict,
    coverage_rows,
    gate_of,
    gate_row,
)
from pocketfocus.export.stage import CHECKS
from pocketfocus.export.targets import get_target
from pocketfocus.mobile_harness.device import MIL_CHECK
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import Row, read_rows, write_rows
from pocketfocus.run.manifest import Artifact, Manifest, check_artifact, load_manifest
from pocketfocus.run.memory import peak_mib
from pocketfocus.run.metrics import psnr
from pocketfocus.run.processes import death, run_module
from pocketfocus.run.progress import step

MODULE = "pocketfocus.benchmarks.full"
REWRITTEN_DB = 90.0
DEVICE, COREML = "host", "coreml"


def is_full(manifest: Manifest) -> bool:
    """Whether a run is one of `export --full`: it has no student."""
    return not manifest.student_sha256 and bool(manifest.reference)


def verify_full(folder: Path) -> list[Row]:
    """Execute every file of a run and gate it against fp32 PyTorch; writes verify.json.

    Core ML files get the MIL check where Core ML is missing. Rows are those of `verify_run` and
    `load_ms`, `run_ms`, `peak_rss_mib` of a file that ran. PSNR is over the whole output, its peak
    the range of PyTorch's. UserError for a damaged file.
    """
    manifest = load_manifest(folder)
    rows: list[Row] = []
    for artifact in manifest.artifacts:
        path = check_artifact(folder, artifact)
        target = get_target(artifact.target)
        reason, device = target.cannot_run(), DEVICE
        if reason is not None and target.name == COREML:
            reason, device = target.cannot_write(), MIL_CHECK
        figures: dict[str, Any] = {}
        gate = gate_of(artifact.precision, device, artifact.recipe)
        if reason is None:
            with step(f"{artifact.name}: {gate.name}, in a process of its own"):
                verdict, figures = execute(path, check_of(folder, artifact), gate.threshold_db)
        else:
            verdict = Verdict(None, "not-run", reason)
        about = (artifact.name, artifact.target, artifact.precision, device)
        row = gate_row(*about, gate.name, gate.threshold_db, verdict)
        rows += [{**row, **figures}, *coverage_rows(artifact, device)]
    write_rows(folder / VERIFY_FILE, rows)
    return rows


def check_of(folder: Path, artifact: Artifact) -> Path:
    """The input and expected output of an artifact; UserError when they are missing."""
    part = Path(artifact.name).stem.rpartition("-")[0]
    path = folder / CHECKS / f"{part}.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: run export --full again")
    return path


def execute(path: Path, check: Path, threshold_db: float) -> tuple[Verdict, dict[str, Any]]:
    """Call a file once, in a process of its own, and judge what it gives."""
    with tempfile.TemporaryDirectory(prefix="pocketfocus-full-") as scratch:
        output = Path(scratch) / "output.safetensors"
        ended = run_module(MODULE, "--call", str(path), str(check), str(output))
        if ended.returncode or not output.is_file():
            return Verdict(None, "fail", f"the process that ran it {death(ended)}"), {}
        found = load_file(output)["output"]
        figures = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    return judged(found, load_file(check)["expected"], threshold_db), figures


def judged(found: Tensor, expected: Tensor, threshold_db: float) -> Verdict:
    """A gate's verdict on an output; PSNR's peak is the range of what is expected."""
    if found.shape != expected.shape:
        return Verdict(None, "fail", f"makes {list(found.shape)}, PyTorch {list(expected.shape)}")
    if not bool(found.isfinite().all()):
        return Verdict(None, "fail", "makes values that are not finite (NaN or infinity)")
    db = math.floor(100 * ranged(found, expected)) / 100
    if db >= threshold_db:
        return Verdict(db, "pass", "")
    return Verdict(db, "fail", f"{db:.1f} dB, {threshold_db:g} dB are needed")


def call(path: Path, check: Path, output: Path) -> None:
    """Load a file, call it once, and write its output, times and peak memory."""
    sample = load_file(check)["input"].contiguous()
    started = time.perf_counter()
    run, warm_up = opened(path)
    if warm_up:
        run(sample)  # packs weights
    loaded = time.perf_counter()
    found = run(sample)
    ended = time.perf_counter()
    figures = {
        "load_ms": round(1000 * (loaded - started)),
        "run_ms": round(1000 * (ended - loaded)),
        "peak_rss_mib": round(peak_mib()),
    }
    save_file({"output": found.contiguous()}, output)
    output.with_suffix(".json").write_text(json.dumps(figures), encoding="utf-8")


def opened(path: Path) -> tuple[Callable[[Tensor], Tensor], bool]:
    """What calls a file of one input and one output, and whether its first call is slower."""
    if path.suffix == ".pte":
        from pocketfocus.export.executorch.write import load

        module = load(path)
        return lambda sample: module.forward([sample])[0].clone(), True
    if get_target(COREML).cannot_run() is None:
        return core_ml(path), True
    from pocketfocus.export.coreml.mil.program import load_program

    program = load_program(path)
    (name,) = program.inputs
    return lambda sample: next(iter(program({name: sample}).values())), False


def core_ml(path: Path) -> Callable[[Tensor], Tensor]:
    """Apple's own prediction; macOS only."""
    import coremltools as ct

    model = ct.models.MLModel(str(path))
    description = model.get_spec().description
    given, made = description.input[0].name, description.output[0].name
    return lambda sample: torch.from_numpy(model.predict({given: sample.numpy()})[made]).float()


@torch.no_grad()
def rewritten_db(spec: str, folder: Path) -> dict[str, float]:
    """PSNR (dB) of the rewritten decoder and UNet against diffusers' own, weights shared."""
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
    """PSNR (dB) whose peak is the range of what is expected."""
    return psnr(found, expected, float(expected.max() - expected.min()))


def table(manifest: Manifest, rows: Sequence[Row]) -> str:
    """One line a file: what it took to write, what is in it, and how it runs."""
    gates = {row["artifact"]: row for row in rows if "psnr_db" in row and row["threshold_db"]}
    lines = []
    for artifact in manifest.artifacts:
        row, taken, found = gates[artifact.name], artifact.taken, artifact.delegation
        ran = row["psnr_db"] is not None
        lines.append(
            [
                f"`{artifact.name}`",
                figure(taken["parameters"] / 1e6),
                figure(artifact.bytes / 1e6, 0),
                figure(sum(taken["seconds"].values()) / 60),
                figure(taken["peak_mib"] / 1024),
                "–" if found is None else f"{100 * found.share:.1f} % of {found.total_ops}",
                "–" if found is None else str(found.calls),
                figure(row["run_ms"] / 1000, 2) if ran else "–",
                figure(row["peak_rss_mib"] / 1024) if ran else "–",
                f"{row['psnr_db']:.1f} {row['status']}" if ran else row["status"],
            ]
        )
    header = ["file", "M parameters", "MB", "min to write", "GiB to write", "delegated", "calls"]
    return markdown([*header, "s a call", "GiB to run", "parity, dB"], lines)


@reported("full")
def main(arguments: Sequence[str] | None = None) -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rewritten", action="store_true")
    parser.add_argument("--call", type=Path, nargs=3, metavar=("FILE", "CHECK", "OUTPUT"))
    options = parser.parse_args(arguments)
    if options.call:
        call(*options.call)
        return
    if options.folder is None:
        parser.error("name the folder of a run")
    manifest = load_manifest(options.folder)
    print(table(manifest, read_rows(options.folder / VERIFY_FILE)))
    if options.rewritten:
        for name, db in rewritten_db(manifest.reference, options.folder).items():
            print(f"{name}, rewritten against diffusers: {db:.1f} dB, {REWRITTEN_DB:g} are needed")


if __name__ == "__main__":
    main()
