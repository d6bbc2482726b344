"""Kills real commands before each of their renames and deletions, and lets them run again.

A process of its own, which forks one for every kill; what ends well, it runs itself.
`python -m tests.cli.killing FOLDER STUDENT REFERENCE PART` prints JSON.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import metadata
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file, save_file

from pocketfocus.benchmarks import checks, model_card, report, scores
from pocketfocus.cli.app import command_line, main
from pocketfocus.data import scenes
from pocketfocus.data.hard import HARD, hard_picture
from pocketfocus.distill.reference import phases, training
from pocketfocus.distill.reference.presets import SMALLEST
from pocketfocus.distill.train import loop
from pocketfocus.distill.train.checkpoint import FILE as CHECKPOINT
from pocketfocus.distill.train.checkpoint import read_counters
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.run_log import BOARD
from pocketfocus.export import stage
from pocketfocus.export.onnx import write
from pocketfocus.mobile_harness import host, worker
from pocketfocus.mobile_harness.device import Job, Result
from pocketfocus.photos import gallery
from pocketfocus.run import scratch, swap
from pocketfocus.run.constants import FRAMES

RENAMES, REMOVALS = ("rename", "replace"), ("unlink", "remove", "rmdir")
TIMED = ("train.jsonl", "loss.png", "report.html")
"""Files that tell of times, or of when they were made."""
CHARTS = (
    (gallery, ("_focus_figure",)),
    (model_card, ("grids_chart", "latency_chart")),
    (report, ("grids_chart", "latency_chart", "size_chart", "sustained_chart")),
)
Tree = Mapping[str, str]
Commands = dict[str, list[str]]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, what it printed, and what it renamed and removed."""

    code: int
    printed: str
    events: Sequence[str] = ()


def content(path: Path) -> bytes:
    """What a file says. The header of a checkpoint has several entries, which safetensors writes in
    an order of its own each time."""
    if path.name != CHECKPOINT:
        return path.read_bytes()
    counters = read_counters(path)
    tensors = sorted(load_file(path).items())
    return str(counters).encode() + b"".join(bytes(t.numpy()) + n.encode() for n, t in tensors)


@dataclass(frozen=True)
class Place:
    """Where commands work: inputs, and `work`, which is put back before each kill."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def tree(self) -> Tree:
        """Hashes of all files, those that tell of times aside."""
        return {
            path.relative_to(self.work).as_posix(): hashlib.sha256(content(path)).hexdigest()
            for path in sorted(self.work.rglob("*"))
            if path.is_file() and path.parent.name != BOARD
        }

    def leftovers(self) -> list[str]:
        """Scratch folders, here and among temporary files."""
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*.part")]

    @property
    def kept(self) -> Path:
        return self.folder / "kept"

    def keep(self) -> None:
        """Remember what is there."""
        shutil.rmtree(self.kept, ignore_errors=True)
        shutil.copytree(self.work, self.kept)

    def put_back(self) -> None:
        """Return to what was there."""
        shutil.rmtree(self.work)
        shutil.copytree(self.kept, self.work)
        for path in (self.folder / "tmp").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def commands(place: Place, student: str, reference: str) -> dict[str, Commands]:
    """Commands that write, each on what those before it in its part left."""
    work, photos = place.work, place.folder / "photos"
    run, taught = str(work / "run"), ["--student", student, "--reference", reference]
    refocus = ["refocus", str(photos / "a.png"), "--model", student, "--position", "4"]
    refocus += ["--out", str(work / "out")]
    return {
        "run": {
            "distill": ["distill", *taught, "--distill-minutes", "0", "--out", run],
            "export": ["export", "--targets", "onnx", "--precisions", "fp32", "--out", run],
            "verify": ["verify", run, "--photos", str(photos)],
            "bench": ["bench", run, "--runs", "2", "--reference", reference],
            "evaluate": [
                *("evaluate", f"{run}/student", "--scenes", "1", "--size", "64x64"),
                *("--positions", "4", "--out", f"{run}/evaluate.json"),
            ],
            "report": ["report", run],
            "publish": ["publish", run, "--licence", "apache-2.0"],
        },
        "others": {
            "refocus": refocus,
            "train-reference": [
                *("train-reference", "--stacks", str(place.folder / "stacks"), "--size", "64x64"),
                *("--steps", "2", "--out", str(work / "reference")),
            ],
        },
    }


def executed_once(place: Place) -> Callable[[host.Host, Job], Result]:
    """The host without a process for each file, with a clock that stands still, and a memory of
    what files gave: nothing of that is what a kill could spoil."""

    def run(self: host.Host, job: Job) -> Result:
        times = (1.0,) * (job.runs or 1)
        still = Result(None, 1.0, 1.0, times, 1.0, 1)
        if not job.want_outputs:
            return still
        given = hashlib.sha256(str(job.calls).encode() + b"".join(map(bytes, job.inputs)))
        known = place.folder / f"{Path(job.artifact).stem}-{given.hexdigest()}.npz"
        if not known.exists():
            tables = {str(k): table for k, table in enumerate(job.inputs)}
            _, made = worker.run_file(job.arguments(), tables, print)
            np.savez(known, *made.values())
        return replace(still, outputs=tuple(np.load(known).values()))

    return run


def converted_once(place: Place) -> Callable[..., Any]:
    """PyTorch's exporter, which takes seconds, with a memory."""
    convert = write.converted

    def converted(module: Any, network: Any) -> Any:
        known = place.folder / f"converted-{network.name}.onnx"
        if not known.exists():
            onnx.save(convert(module, network), known)
        return onnx.load(known)

    return converted


def blank(*_: object) -> bytes:
    """A picture in place of a chart."""
    data = BytesIO()
    saved(None, data)
    return data.getvalue()


def saved(figure: Figure | None, target: Any, **options: object) -> None:
    """A picture saved in place of a figure."""
    Image.new("L", (8, 8)).save(target, "png")


def spare(place: Place) -> None:
    """Leave out what takes time and no kill could spoil: files are executed and converted once,
    pictures decoded and commands put together once, charts are blank, films empty, scores guessed,
    and trainings small, by a clock that stands still. A kill loses nothing that a disk has not yet:
    it waits for none."""
    small, smallest = (Crops(1.0, 1, 32),), replace(SMALLEST, unet_channels=(32,))
    smallest = replace(smallest, attention_levels=0)
    for owner, name, other in (
        (os, "fsync", lambda handle: None),
        (metadata, "version", cache(metadata.version)),
        (scenes, "_bundled", cache(scenes._bundled)),
        (host.Host, "run", executed_once(place)),
        (host.Host, "frames", lambda self, job, render: executed_once(place)(self, job)),
        (write, "converted", converted_once(place)),
        (checks, "captured_graph", lambda student, shape: student),
        (Figure, "savefig", saved),
        *((module, name, blank) for module, names in CHARTS for name in names),
        (gallery, "_save_mp4", lambda frames, path: path.write_bytes(b"film")),
        (scores, "ssim", lambda made, truth: 0.5),
        (scores, "vif", lambda made, truth: 0.5),
        (loop.Trainer, "_pictures", lambda *given: None),
        (loop, "time", SimpleNamespace(monotonic=lambda: 0.0)),
        (phases, "INITIAL_CROPS", 8),
        (training, "AUTOENCODER_CROPS", small),
        (training, "DENOISER_CROPS", small),
        (training, "train_reference", partial(phases.train_reference, preset=smallest)),
    ):
        setattr(owner, name, other)
    HARD.update({name: cache(picture) for name, picture in HARD.items()})
    for name in HARD:
        hard_picture(name)
    command_line()
    scenes.bundled_photos()
    host.Host().describe()
    stage.tools()


def whole(words: Sequence[str], place: Place) -> Ended:
    """A command in this process, which costs less than one that is forked: that one finds all that
    is imported here and worked out once."""
    said = StringIO()
    with watched() as events, redirect_stdout(said), redirect_stderr(said):
        code = main(list(words))
    scratch.swept.cache_clear()  # once a process
    gc.collect()
    gc.freeze()  # so that a child's collector copies nothing of what is shared
    return Ended(code, said.getvalue(), events)


def forked(words: Sequence[str], place: Place, last: int) -> Ended:
    """A command in a process of its own, killed before event `last`, if it comes so far."""
    child = os.fork()
    if not child:
        printed = os.open(place.folder / "printed", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        with watched(last):
            os._exit(main(list(words)))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(code, (place.folder / "printed").read_text())


@contextmanager
def watched(last: int = 0) -> Iterator[list[str]]:
    """Note what is renamed and removed; before event `last` this process is killed. Deletions in a
    row are one event."""
    events: list[str] = []

    def noted(call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def calls(*words: Any, **options: Any) -> Any:
            if kind != "removes" or not events or not events[-1].startswith(kind):
                events.append(f"{kind} {words[0]}")
                if len(events) == last:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*words, **options)

        return calls

    kinds = dict.fromkeys(RENAMES, "renames") | dict.fromkeys(REMOVALS, "removes")
    exchange = noted(swap.exchange, "exchanges")
    with ExitStack() as patches:
        for module in (swap, scratch):
            patches.enter_context(patch.object(module, "exchange", exchange))
        for name, kind in kinds.items():
            patches.enter_context(patch.object(os, name, noted(getattr(os, name), kind)))
        yield events


def killed(name: str, words: Sequence[str], place: Place) -> tuple[int, list[str]]:
    """How often a command was killed, before each of its events, and what went wrong when it then
    ran again."""
    place.keep()
    before = place.tree()
    ended = whole(words, place)
    if ended.code:
        return 0, [f"{name} ended with {ended.code}: {ended.printed[-400:]}"]
    after, kills = place.tree(), 0
    wrong: list[str] = []
    for last, event in enumerate(ended.events, 1):
        place.put_back()
        ended = forked(words, place, last)
        if not ended.code:  # what it saves now and then it saved less often
            continue
        kills += 1
        found = [*foreign(place.tree(), before, after)]
        again = whole(words, place)
        codes = ended.code, again.code
        if codes != (-signal.SIGKILL, 0):
            found.append(f"it ended with {codes}: {ended.printed[-200:]} {again.printed[-200:]}")
        found += different(place.tree(), after)
        found += (f"{each} is left" for each in place.leftovers())
        wrong += (f"{name}, killed before it {event} ({last}): {what}" for what in found)
    return kills, wrong


def watched_outside(folder: Path) -> list[str]:
    """Note from now on what this process opens: connections, and files to write elsewhere."""
    seen: list[str] = []

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(given[1], tuple):
            seen.append(f"{given[1]} was connected to")
        if event != "open" or not isinstance(given[0], str | bytes) or given[2] is None:
            return
        path = Path(os.fsdecode(given[0])).absolute()
        elsewhere = not any(path.is_relative_to(own) for own in (folder, "/dev", "/proc"))
        if elsewhere and given[2] & (os.O_WRONLY | os.O_RDWR):
            seen.append(f"{path} was written")

    sys.addaudithook(hook)
    return seen


def foreign(found: Tree, before: Tree, after: Tree) -> Iterator[str]:
    """What of a student is neither the old nor the new one."""
    of = [
        {name: text for name, text in tree.items() if name.startswith("run/student/")}
        for tree in (found, before, after)
    ]
    if of[0] not in of[1:]:
        yield f"its student is neither old nor new: {sorted(of[0])}"


def different(found: Tree, expected: Tree) -> Iterator[str]:
    """The files that are not as they were to be; those of times only have to be there."""
    for name in sorted(found.keys() | expected.keys()):
        timed = name.endswith(TIMED) and name in found and name in expected
        if not timed and found.get(name) != expected.get(name):
            yield f"{name} is {'other' if name in found else 'missing'}"


def prepare(place: Place, student: str) -> None:
    """A photo, a stack, a run that has a student of its own, which is neither shipped nor given,
    and a folder for frames in which lies something else."""
    for name in ("work", "work/out", "tmp", "photos", "stacks/desk"):
        (place.folder / name).mkdir(parents=True, exist_ok=True)
    (place.work / "out" / "mine.txt").write_text("mine")
    own = place.work / "run" / "student"
    shutil.copytree(student, own)
    (weights,) = own.glob("*.safetensors")
    save_file({name: 0.9 * tensor for name, tensor in load_file(weights).items()}, weights)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(place.folder / "photos" / "a.png")
    for index in range(FRAMES):
        frame = Image.fromarray(np.roll(pixels, index, 0))
        frame.save(place.folder / "stacks" / "desk" / f"{index}.png")


def kill_all(folder: Path, student: str, reference: str, part: str) -> dict[str, object]:
    """What went wrong, and for each command of a part its number of kills and seconds."""
    torch.set_num_threads(1)
    place = Place(folder)
    prepare(place, student)
    spare(place)
    wrong = watched_outside(folder)
    kills, took = {}, {}
    for name, words in commands(place, student, reference)[part].items():
        started = sum(os.times()[:4])
        kills[name], found = killed(name, words, place)
        wrong += found
        took[name] = round(sum(os.times()[:4]) - started, 1)
        print(name, kills[name], took[name], found[:2], file=sys.stderr, flush=True)
    return {"wrong": wrong, "kills": kills, "seconds": took}


if __name__ == "__main__":
    print(json.dumps(kill_all(Path(sys.argv[1]), *sys.argv[2:])))
