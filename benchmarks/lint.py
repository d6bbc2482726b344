"""`lint`: what may go badly with written files on some device, each by a rule with its source.

Rules read the graph that was written (`Target.lint`). One is measured: how large values become in a
file of a run, on a photo, white, black and noise, since float16 ends at 65,504.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from pocketfocus.benchmarks.checks import is_of_networks
from pocketfocus.data.hard import hard_picture
from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.export.targets import Advice, Severity, Target, get_target, get_targets, target_of
from pocketfocus.quantize.calibration import fitted
from pocketfocus.run.constants import FRAMES, Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import MANIFEST_FILE, check_artifact, load_exported, load_manifest
from pocketfocus.run.paths import below

FLOAT16_MOST = 65_504.0
NEAR = FLOAT16_MOST / 4
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
DRAWN = ("white", "black", "noise")
OVERFLOW = "https://github.com/microsoft/onnxruntime/issues/26367"


@dataclass(frozen=True)
class Found:
    """What a rule found in a file."""

    file: str
    advice: Advice

    def row(self) -> dict[str, str]:
        return {"file": self.file, **self.advice._asdict()}


def lint(path: Path, measure: bool = True) -> list[Found]:
    """Return what the rules find in a file, or in all files of a run, the worst first.

    With `measure` the files of a run whose target can be executed here are called, too. Raises
    UserError for what is neither, is damaged, or is of a suffix that no target has.
    """
    if (path / MANIFEST_FILE).is_file():
        found = lint_run(path, measure)
    else:
        found = [Found(path.name, each) for each in advice_on(_target(path), path)]
    return sorted(found, key=lambda each: SEVERITIES.index(each.advice.severity))


def lint_run(folder: Path, measure: bool) -> list[Found]:
    """Return what the rules find in all files of a run; UserError for a run of none."""
    manifest, found = load_exported(folder), list[Found]()
    for artifact in manifest.files:
        target, file = get_target(artifact.target), check_artifact(folder, artifact)
        advice = advice_on(target, file)
        if measure and [spec.name for spec in artifact.inputs] == ["photo", "position"]:
            advice += overflow(target, file, manifest.size)
        found += [Found(artifact.name, each) for each in advice]
    return found


def lint_of_student(folder: Path) -> str:
    """Return, in words, how much the rules find in a student's files, which were checked just now,
    without calling any; "" for nothing, and for networks of a reference, which are too large to be
    read once more."""
    manifest, found = load_manifest(folder), list[Advice]()
    for artifact in () if is_of_networks(manifest) else manifest.files:
        found += advice_on(get_target(artifact.target), below(folder, artifact.name))
    return summary(found)


def advice_on(target: Target, file: Path) -> list[Advice]:
    """Return what a target's rules find in a file; UserError for one whose graph is damaged."""
    try:
        return list(target.lint(file))
    except UserError:
        raise
    except Exception as error:  # readers stumble over whatever is not as it was written
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{file} has a damaged graph ({what}): export it again") from error


def overflow(target: Target, file: Path, size: Size) -> Iterator[Advice]:
    """Say by how much the largest value of a file's layers stays below what float16 holds."""
    try:
        where, peak = max(peaks(target, file, size), key=lambda pair: pair[1])
    except UserError as error:
        yield Advice(
            "not-measured", "note", "values of layers", str(error),
            "lint the run where its files can be executed", OVERFLOW,
        )  # fmt: skip
        return
    if peak >= NEAR:
        yield Advice(
            "float16-range", "error" if peak > FLOAT16_MOST else "warning", where,
            f"values reach {peak:,.0f}, float16 ends at {FLOAT16_MOST:,.0f}: the Neural Engine and "
            "GPUs compute in float16",
            "ship the fp32 file for these, or train with smaller activations", OVERFLOW,
        )  # fmt: skip


def peaks(target: Target, file: Path, size: Size) -> Iterator[tuple[str, float]]:
    """Give the layer and magnitude of the largest value for each picture; UserError where this
    machine cannot lay the file's layers open."""
    for position, photo in enumerate(pictures(size)):
        feeds = {"photo": photo, "position": one_hot(position % FRAMES)}
        layers, _ = target.layers(file, feeds)
        yield max(((each.operator, float(each.value.abs().max())) for each in layers),
                  key=lambda pair: pair[1])  # fmt: skip


def pictures(size: Size) -> list[Tensor]:
    """Return photos and drawn pictures [1,3,H,W] in [-1,1]."""
    images = [*map(Image.fromarray, held_out_photos()), *map(hard_picture, DRAWN)]
    return [fitted(image, size) for image in images]


def summary(found: Iterable[Advice]) -> str:
    """Return how many findings of each severity there are, in words; "" for none."""
    counts = Counter(each.severity for each in found)
    parts = [f"{counts[name]} {name}{'s' * (counts[name] != 1)}" for name in SEVERITIES]
    return ", ".join(part for name, part in zip(SEVERITIES, parts, strict=True) if counts[name])


def _target(path: Path) -> Target:
    if not path.exists():
        raise UserError(f"{path} is missing: name a run, or a file of one")
    target = target_of(path)
    if target is None:
        suffixes = ", ".join(target.suffix for target in get_targets())
        raise UserError(
            f"{path} is no run, which has a {MANIFEST_FILE}, and no file of a target: name a run, "
            f"or a file that ends in {suffixes}"
        )
    return target
