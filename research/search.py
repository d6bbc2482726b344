"""Which student to ship: architectures by latency and by what a short distillation gains.

    python -m pocketfocus.research.search --photos PHOTOS --real REAL_STACKS --out build/search

Latencies are those of the exported int8 file. Every candidate is trained for as many steps from
the same seed on the same batches of true stacks, scored on stacks it has not seen, and exported.
Then all are timed in turn (see `clock`). Both phases go on where they were interrupted; the last
lines are the table of the docs, and search.png in `--out` is its plot. `--latency-only` times
random weights.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pocketfocus.benchmarks.charts import Point, pareto_chart
from pocketfocus.benchmarks.evaluate import validation_stacks
from pocketfocus.benchmarks.tables import difference, figure, markdown
from pocketfocus.data.datasets import PHOTOS, SYNTHETIC, Request, open_source
from pocketfocus.data.optics import one_hot
from pocketfocus.data.stacks import FocalStack, Source, StackFolder, cache_sources
from pocketfocus.distill.student.methods import get_method
from pocketfocus.distill.student.regression import stack_losses
from pocketfocus.distill.student.samples import true_batch
from pocketfocus.distill.train.crops import Crops, Pixels
from pocketfocus.distill.train.loop import Task, Trainer
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.export import executorch, onnx
from pocketfocus.export.stage import Export, export_run, path_of
from pocketfocus.export.student import STUDENT
from pocketfocus.mobile_harness.device import PYTORCH
from pocketfocus.models.model import NamedModel
from pocketfocus.models.student import RefocusStudent, load_student, save_student
from pocketfocus.quantize.calibration import calibration
from pocketfocus.research.clock import Round, Timed, p50, ratio, rounds
from pocketfocus.research.realism import gains
from pocketfocus.run.cache import Kept
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import Row, key_of, write_atomic
from pocketfocus.run.manifest import Manifest
from pocketfocus.run.progress import console, track

SIZE = (256, 256)
STEPS, SCENES, VALIDATION_SCENES = 200, 200, 12
INPUTS = (0, 4, 8)
CROPS = Crops(1.0, 8, 128)
SEED = 0
ROUNDS, CALLS = 10, 3
HEAD_STD = 0.02  # of weights that begin at zero, where nothing trains them

DENSE = {"depthwise": False, "activation": "relu"}
CANDIDATES: dict[str, dict[str, Any]] = {
    "shipped": {},
    "ReLU": {"activation": "relu"},
    "SiLU": {"activation": "silu"},
    "wide MLPs": {"expansion": 4},
    "wide": {"channels": (96, 160, 224, 320)},
    "narrow": {"channels": (32, 64, 96, 128)},
    "deep": {"blocks": (2, 5, 4, 2)},
    "attention": {"attention": True},
    "frames apart": {"channels": (72, 128, 192, 256), "frames_apart": True},
    "3x3": DENSE,
    "3x3, Hardswish": {"depthwise": False},
}
"""Arguments of `RefocusStudent` that differ from its own, by name; latencies are ratios to the
first."""

INT8, EAGER, FP32, ONNX = "int8", "eager", "fp32", onnx.TARGET.name
EXPORTS = {
    INT8: (executorch.TARGET, "int8"),
    FP32: (executorch.TARGET, "fp32"),
    ONNX: (onnx.TARGET, "fp32"),
}
"""Target and precision of the files that can be timed, int8 always."""
_PATHS = {kind: (target.name, path_of(target, bits)) for kind, (target, bits) in EXPORTS.items()}
FILES = {INT8: _PATHS.pop(INT8), EAGER: (PYTORCH, STUDENT), **_PATHS}
"""What can be timed of every candidate: target, and path below its folder."""
SHOWN = {EAGER: "eager fp32", FP32: "fp32 .pte", ONNX: "onnxruntime fp32"}
"""What int8 is compared to, as in the table."""


@dataclass(frozen=True)
class Candidate:
    """An architecture before training; `steps` 0 leaves it at random weights."""

    name: str
    student: RefocusStudent
    steps: int
    data: str

    @cached_property
    def config(self) -> Row:
        """All arguments of the student."""
        return {k: v for k, v in self.student.config.items() if not k.startswith("_")}

    @cached_property
    def key(self) -> str:
        """A hash of what its training depends on: config, graph, first weights, budget, data.

        The graph stands for the student's code, so that a changed comment trains nothing anew.
        """
        photo = torch.zeros(1, 3, *self.student.photo_size)
        program = torch.export.export(self.student, (photo, one_hot(0)))
        digest = hashlib.sha256()
        for name, tensor in self.student.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        crops = (CROPS.batch, CROPS.size)
        training = {"steps": self.steps, "crops": crops, "rate": rate(), "data": self.data}
        return key_of(
            config=self.config,
            graph=str(program.graph),
            weights=digest.hexdigest(),
            training=training if self.steps else None,
        )

    def folder(self, out: Path) -> Path:
        """Where its student and files lie."""
        return out / f"{self.name.replace(' ', '-')}-{self.key}"

    def kept(self, out: Path) -> Kept:
        """Return its figures, as far as they were measured."""
        return Kept(self.folder(out).with_name(f"{self.folder(out).name}.json"), self.key)


def rate() -> float:
    """Return the peak learning rate: that of a regression from random weights."""
    return get_method("regression").scratch_rate


def candidates(names: Sequence[str], steps: int, data: str) -> list[Candidate]:
    """Build those of `names` (none: all) from one seed. UserError for an unknown name, or for
    arguments that the student does not take."""
    unknown = [name for name in names if name not in CANDIDATES]
    if unknown:
        raise UserError(f"no candidate '{unknown[0]}': choose from {', '.join(CANDIDATES)}")
    made = []
    for name in names or CANDIDATES:
        torch.manual_seed(SEED)
        try:
            student = RefocusStudent(**CANDIDATES[name])
        except (TypeError, ValueError) as error:
            raise UserError(f"candidate {name}: {error}; see RefocusStudent's arguments") from error
        made.append(Candidate(name, student, steps, data))
    return made


def train(student: nn.Module, stacks: Pixels, folder: Path, steps: int) -> None:
    """Train by regression to true stacks, uint8 [N,9,3,H,W], in place; goes on from `folder`'s
    checkpoint.

    Batches depend on the seed alone: all candidates see the same ones in the same order.
    """
    schedule = Schedule(steps=steps, learning_rate=rate(), checkpoint_minutes=2)
    trainer = Trainer(student.train(), schedule, folder, SEED)
    trainer.resume("search")

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return true_batch(stacks, 1, size, generator)

    def losses(photos: Tensor, positions: Tensor, truth: Tensor) -> dict[str, Tensor]:
        made = student(photos, F.one_hot(positions, FRAMES).float())
        return stack_losses(made.float().reshape(truth.shape), photos, positions, truth)

    trainer.run(Task(draw, losses, (CROPS,)), "training")
    trainer.ema.load()
    student.cpu().eval()


def randomise(student: nn.Module) -> None:
    """Give weights that begin at zero some values, or there would be nothing to quantize."""
    generator = torch.Generator().manual_seed(SEED)
    for parameter in student.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=HEAD_STD, generator=generator)


def gigaflops(student: RefocusStudent) -> float:
    """The cost of one stack, 2 FLOPs a multiply-add, by torch's counter."""
    photo = torch.zeros(1, 3, *student.photo_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(photo, one_hot(0))
    return counter.get_total_flops() / 1e9


def prepare(candidate: Candidate, out: Path, source: Source) -> None:
    """Train one candidate, if it was not trained before."""
    folder, kept = candidate.folder(out), candidate.kept(out)
    if kept.fields and (folder / STUDENT).is_dir():
        return
    student = candidate.student
    if candidate.steps:
        console.print(f"{candidate.name}: {candidate.steps} steps", markup=False)
        pixels = cache_sources(out / "stacks", [source], SIZE).pixels
        train(student, pixels, folder / "training", candidate.steps)
    else:
        randomise(student)
    save_student(student, folder / STUDENT)
    kept.save(
        candidate=candidate.name,
        config=candidate.config,
        steps=candidate.steps,
        parameters=sum(p.numel() for p in student.parameters()),
        gflops=gigaflops(student),
        gains={},
    )


def opened(candidate: Candidate, out: Path) -> NamedModel:
    """Return the trained student, eager in fp32."""
    student = load_student(candidate.folder(out) / STUDENT)
    return NamedModel(candidate.name, None, lambda photo, at: student(photo, one_hot(at)))


def score(candidate: Candidate, out: Path, tests: Mapping[str, Sequence[FocalStack]]) -> Row:
    """Score a candidate on every kind of test stacks: its figures with gains over copy, dB by
    scene."""
    kept = candidate.kept(out)
    for kind, stacks in tests.items():
        if kept.fields["gains"].get(kind, {}).keys() != {stack.name for stack in stacks}:
            kept.fields["gains"][kind] = gains(opened(candidate, out), stacks, INPUTS)
            kept.save()
    return {**kept.fields, "gains": {kind: kept.fields["gains"][kind] for kind in tests}}


def export(candidate: Candidate, out: Path, kinds: Sequence[str]) -> Manifest:
    """Write the files to time, those that are not there yet; the manifest lists int8 among them."""
    folder = candidate.folder(out)
    console.print(f"{candidate.name}: exporting", markup=False)
    for kind in [*kinds, INT8]:
        if kind in EXPORTS:
            target, precision = EXPORTS[kind]
            export = Export(folder, [target.name], [precision])
            manifest = export_run(folder / STUDENT, export, log=_quiet)
    return manifest


def _quiet(text: str) -> None:
    """Say nothing: the stage's log is not needed."""


def timed_name(candidate: Candidate, kind: str) -> str:
    """The name of a file among all that are timed."""
    return f"{candidate.name}: {kind}"


def time_all(
    chosen: Sequence[Candidate],
    manifests: Sequence[Manifest],
    kinds: Sequence[str],
    out: Path,
    count: int,
    threads: int | None,
) -> list[Round]:
    """Time `count` rounds over all files of all candidates; those measured before, of the very same
    files, count. UserError for a file that does not open."""
    files = [
        Timed(
            timed_name(candidate, kind),
            target,
            candidate.folder(out) / path,
            np.asarray(calibration(candidate.student.photo_size, inputs=1).photos[0]),
        )
        for candidate in chosen
        for kind, (target, path) in FILES.items()
        if kind in kinds
    ]
    paths = {FILES[kind][1] for kind in kinds}
    hashes = {
        candidate.name: [
            manifest.student_sha256,
            *(a.sha256 for a in manifest.artifacts if a.name in paths),
        ]
        for candidate, manifest in zip(chosen, manifests, strict=True)
    }
    key = key_of(files=hashes, kinds=sorted(kinds), calls=CALLS, threads=threads)
    kept = Kept(out / f"latency-{key}.json", key)
    measured: list[Round] = kept.fields.get("rounds", [])
    begun = len(measured)
    further = rounds(files, CALLS, begun, count, threads)
    for made in track(further, f"timing {len(files)} files", max(0, count - begun)):
        measured.append(made)
        kept.save(files=hashes, threads=threads, rounds=measured)
    return measured[:count]


def search_table(
    chosen: Sequence[Candidate],
    rows: Sequence[Row],
    manifests: Sequence[Manifest],
    measured: Sequence[Round],
) -> str:
    """Show a line a candidate: what it costs, how fast its files are, and its gains over copy with
    the difference to the first candidate over the same scenes and its standard error."""
    kinds = list(rows[0]["gains"])
    first = timed_name(chosen[0], INT8)
    others = [k for k in FILES if k != INT8 and timed_name(chosen[0], k) in measured[0]]
    lines = []
    for candidate, row, manifest in zip(chosen, rows, manifests, strict=True):
        int8 = timed_name(candidate, INT8)
        (artifact,) = (a for a in manifest.artifacts if a.name == FILES[INT8][1])
        lowered = artifact.delegation
        cells = [
            candidate.name,
            figure(row["parameters"] / 1e6, 2),
            figure(row["gflops"], 2),
            figure(artifact.bytes / 1e6, 2),
            "–" if lowered is None else f"{lowered.calls}, {100 * lowered.share:.1f} %",
            figure(p50(measured, int8)),
            figure(ratio(measured, int8, first), 2),
            *(figure(ratio(measured, timed_name(candidate, k), int8), 2) for k in others),
        ]
        for kind in kinds:
            cells.append(f"{fmean(row['gains'][kind].values()):+z.2f}")
            cells.append("–" if row is rows[0] else paired(row, rows[0], kind))
        lines.append(cells)
    heads = ["candidate", "M parameters", "GFLOPs", "int8 MB", "delegate calls, share", "int8 ms"]
    heads += ["× first", *(f"{SHOWN[kind]} / int8" for kind in others)]
    heads += [head for kind in kinds for head in (f"{kind}: over copy, dB", "against first")]
    return markdown(heads, lines)


def paired(row: Row, other: Row, kind: str) -> str:
    """Return the mean difference of two candidates' gains over the same scenes, and its standard
    error."""
    differences = [gain - other["gains"][kind][scene] for scene, gain in row["gains"][kind].items()]
    return difference(differences)


def search_plot(
    chosen: Sequence[Candidate], rows: Sequence[Row], measured: Sequence[Round]
) -> bytes:
    """Draw the int8 file's latency against the gain over copy as PNG, a panel a kind of test
    stacks."""
    panels = {
        f"{kind} stacks": [
            Point(
                candidate.name,
                p50(measured, timed_name(candidate, INT8)),
                fmean(row["gains"][kind].values()),
            )
            for candidate, row in zip(chosen, rows, strict=True)
        ]
        for kind in rows[0]["gains"]
    }
    return pareto_chart(panels, "int8 .pte, ms a stack, p50", "gain over copy, dB, d > 0")


def search(options: argparse.Namespace) -> str:
    """Run all phases; the table."""
    out: Path = options.out
    steps = 0 if options.latency_only else options.steps
    spec = f"{PHOTOS}:{options.photos}" if options.photos else SYNTHETIC
    source = open_source(spec, Request(options.scenes, SIZE))
    chosen = candidates(options.only, steps, source.key)
    tests: dict[str, Sequence[FocalStack]] = {}
    if steps:
        tests["rendered"] = validation_stacks()[: options.validation_scenes]
        if options.real:
            tests["real"] = list(StackFolder(options.real, SIZE))
    for candidate in chosen:
        prepare(candidate, out, source)
    rows = [score(candidate, out, tests) for candidate in chosen]
    kinds = [kind for kind in FILES if kind == INT8 or kind in (options.file or FILES)]
    manifests = [export(candidate, out, kinds) for candidate in chosen]
    measured = time_all(chosen, manifests, kinds, out, options.rounds, options.threads)
    text = search_table(chosen, rows, manifests, measured)
    with write_atomic(out / "search.md") as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")
    if tests:
        with write_atomic(out / "search.png") as scratch:
            scratch.write_bytes(search_plot(chosen, rows, measured))
    return text


@reported("search")
def main(arguments: Sequence[str] | None = None) -> None:
    """Search and print; see the module's docstring."""
    parser = argparse.ArgumentParser(description="architectures by latency and short distillation")
    parser.add_argument("--only", action="append", default=[], help="candidate, repeatable")
    parser.add_argument("--photos", type=Path, help="textures beside the bundled photos")
    parser.add_argument("--real", type=Path, help="real stacks to score on too")
    parser.add_argument("--scenes", type=int, default=SCENES, help="to train on")
    parser.add_argument("--validation-scenes", type=int, default=VALIDATION_SCENES)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, each candidate")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of timing all files")
    parser.add_argument(
        "--file", action="append", choices=list(SHOWN), help="to time beside int8; default: all"
    )
    parser.add_argument("--threads", type=int, help="of every runtime; default: PyTorch's")
    parser.add_argument("--latency-only", action="store_true", help="of random weights")
    parser.add_argument("--out", type=Path, default=Path("build/search"))
    options = parser.parse_args(arguments)
    for name in ("scenes", "validation_scenes", "steps", "rounds", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}, at least 1 is needed")
    text = search(options)
    console.print(f"table: {options.out / 'search.md'}", markup=False)
    print(text)


if __name__ == "__main__":
    main()
