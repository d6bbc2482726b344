"""Quality against true focal stacks: PSNR, SSIM and more for every input and output position.

A cell of the 9×9 grid is the mean of its per-image values over the scenes that have truth there; a
mean averages the cells. Figures are capped at `ROUNDING_DB` per image: two images closer than that
are the same at 8 bits, and without a cap the exact diagonal of `copy` would swamp its mean. The
mean off the diagonal, beside copy, is the figure to compare. Beside it stands the one that
Learn2Refocus publishes, which pools the squared error of a cell's images, where scenes that are far
off count most: it is lower.

Legend: N frames of a stack, H, W.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from statistics import fmean, stdev

import torch

from pocketfocus.benchmarks.baselines import COPY, TABLE_FILE, baselines
from pocketfocus.benchmarks.evaluation import EVALUATE_FILE, Cell, Evaluation, Means
from pocketfocus.benchmarks.focus_accuracy import focus_accuracy
from pocketfocus.benchmarks.frechet import Seen
from pocketfocus.benchmarks.metric_networks import open_networks
from pocketfocus.benchmarks.metric_weights import weights_in
from pocketfocus.benchmarks.perceptual import Perceptual
from pocketfocus.benchmarks.samples import keep_scenes
from pocketfocus.benchmarks.scores import Call, Ledger, Score, Scores, no_worse, score_of
from pocketfocus.benchmarks.truth import (
    SCENES,
    TOLERANCE,
    Truth,
    frames_by_position,
    note_of_motion,
    source_name,
    true_stacks,
)
from pocketfocus.data.datasets import SYNTHETIC, check_source, is_rendered
from pocketfocus.data.scenes import VALIDATION_SEED, held_out_photos
from pocketfocus.data.stacks import FocalStack, RenderedScenes
from pocketfocus.export.open import REFERENCE, open_any, open_model, place_of
from pocketfocus.export.targets import get_target
from pocketfocus.models.model import Model, refocus
from pocketfocus.models.places import DEFAULT_WEIGHTS, STUDENT, find_places, shipped_student
from pocketfocus.models.student import SHIPPED_WEIGHTS
from pocketfocus.run.cache import source_hash
from pocketfocus.run.constants import FRAMES, Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import key_of, sha256
from pocketfocus.run.manifest import load_manifest
from pocketfocus.run.paths import below
from pocketfocus.run.progress import track
from pocketfocus.run.rows import write_rows

REGISTERED = ", registered"  # what is said of such stacks
ROUNDING_DB = 10 * math.log10(12 * 255**2)  # 58.9 dB: uniform error of half a step of 8 bits
MORE = ("vif", "lpips", "dists")


@dataclass(frozen=True)
class Comparison:
    """From where, at which size, and by what models are compared.

    Attributes:
        inputs: the photo's positions.
        per_scene: how many of them a scene, in turn over the scenes; None for all.
        size: (height, width) in pixels that made and true images are scaled to before they are
            compared, which the photo is not; None for its own.
        perceptual: LPIPS and DISTS, where they are wanted.
        seen: what FID is computed of, where it is wanted.
    """

    inputs: Sequence[int] = range(FRAMES)
    per_scene: int | None = None
    size: Size | None = None
    perceptual: Perceptual | None = None
    seen: Seen | None = None


def evaluate_models(
    models: Sequence[Model],
    stacks: Iterable[FocalStack],
    stacks_name: str,
    how: Comparison = Comparison(),
    ledger: Ledger | None = None,
) -> Evaluation:
    """Score every model on every stack, from the input positions that the stack has a frame for.

    ledger: calls found there are not made again; new ones are added.

    UserError when two models share a name, when no frame can be scored, or when a model makes a
    stack of another shape or values that are not finite.
    """
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise UserError(f"two models share a name in {', '.join(names)}: name each one once")
    wanted, kept = tuple(how.inputs), Ledger() if ledger is None else ledger
    count = len(wanted) if how.per_scene is None else min(how.per_scene, len(wanted))
    total = len(stacks) * len(models) * count if isinstance(stacks, Sized) else None
    tasks = _tasks(models, stacks, wanted, count, how.size)
    tasks = track(tasks, f"evaluating on {stacks_name}", total)
    try:
        for scene, stack, truth, model, position in tasks:
            made = (scene, model.name, position)
            if made not in kept or (how.seen is not None and made not in how.seen):
                scores, focus = _score(model, stack, truth, made, how)
                call = Call(scene=scene, model=model.name, position=position, scores=scores)
                kept.add(call.model_copy(update=focus))
    finally:
        kept.save()
    calls = list(kept)
    if not calls:
        raise UserError(
            f"{stacks_name} has no frame within {TOLERANCE} of an input position in "
            f"{', '.join(map(str, wanted))}: choose other inputs or give other stacks"
        )
    cells = _cells(calls, names, stacks_name)
    gains, shares = _gains(calls), _shares(calls, names)
    means = []
    for name in names:
        more = {**shares.get(name, {}), **_fid(how.seen, name)}
        means.append(_means(name, cells, calls, gains.get(name, [])).model_copy(update=more))
    return Evaluation(cells, means)


def _tasks(
    models: Sequence[Model],
    stacks: Iterable[FocalStack],
    inputs: Sequence[int],
    count: int,
    size: Size | None,
) -> Iterator[tuple[int, FocalStack, Truth, Model, int]]:
    """Yield every call to make: scene number, stack, its truth, model, input position."""
    turn = 0
    for index, stack in enumerate(stacks):
        truth = Truth(frames_by_position(stack), size)
        usable = [position for position in inputs if position in truth.frames]
        chosen = [usable[(turn + n) % len(usable)] for n in range(min(count, len(usable)))]
        turn += len(chosen)
        for model in models:
            for position in sorted(chosen):
                yield index, stack, truth, model, position


def _score(
    model: Model,
    stack: FocalStack,
    truth: Truth,
    call: tuple[int, str, int],
    how: Comparison,
) -> tuple[Scores, dict[str, float]]:
    """Return scores by output position, of images scaled to a size if one is given, and what `Call`
    says of the stack's focus."""
    position, wanted = call[-1], truth.compared
    if model.reconstruct is not None:
        made = model.reconstruct(torch.cat(list(truth.frames.values()))).clamp(-1, 1)
        images = {output: made[n : n + 1] for n, output in enumerate(wanted)}
    else:
        made = refocus(model, truth.frames[position], position, stack.name, stack.aspect)
        images = {output: made[output : output + 1] for output in wanted}
    images = {at: truth.at_size(image) for at, image in images.items()}
    photo, scores = wanted[position], {}
    for at, frame in wanted.items():
        places = truth.sharper(position, at)
        scores[at] = score_of(images[at], frame, photo, ROUNDING_DB, places, how.perceptual)
    off = [at for at in wanted if at != position]
    if how.seen is not None and off:
        how.seen.add(call, *(torch.cat([each[at] for at in off]) for each in (images, wanted)))
    found = focus_accuracy(torch.cat([images[at] for at in wanted]), truth.focus, [*wanted])
    return scores, {} if found is None else {"focus_share": found.share, "focus_error": found.error}


def _cells(calls: Sequence[Call], names: Sequence[str], stacks_name: str) -> list[Cell]:
    """Return the cells by model, input and output position, in this order."""
    scores: dict[tuple[str, int, int], list[Score]] = defaultdict(list)
    for call in calls:
        for output, score in call.scores.items():
            scores[call.model, call.position, output].append(score)
    ordered = sorted(scores.items(), key=lambda item: (names.index(item[0][0]), *item[0][1:]))
    return [
        Cell(
            model=model,
            stacks=stacks_name,
            input_position=position,
            output_position=output,
            psnr_db=fmean(score.psnr_db for score in found),
            ssim=fmean(score.ssim for score in found),
            sharper_gain_db=mean(score.sharper_gain_db for score in found),
            restored=mean(score.restored for score in found),
            pooled_psnr_db=pooled([score.psnr_db for score in found]),
            **_given({name: mean(getattr(score, name) for score in found) for name in MORE}),
        )
        for (model, position, output), found in ordered
    ]


def pooled(figures_db: Sequence[float]) -> float:
    """Return the PSNR of the mean squared error of images of these PSNRs."""
    return -10 * math.log10(fmean(10 ** (-figure / 10) for figure in figures_db))


def _gains(calls: Sequence[Call]) -> dict[str, list[float]]:
    """Return gains over `copy` off the diagonal by model, one a scene that copy has the same cells
    of."""
    scenes: dict[tuple[str, int], list[float]] = defaultdict(list)
    for call in calls:
        off = [score.psnr_db for output, score in call.scores.items() if output != call.position]
        scenes[call.model, call.scene] += off
    gains: dict[str, list[float]] = defaultdict(list)
    for (model, scene), values in scenes.items():
        copied = scenes.get((COPY, scene))
        if copied and len(copied) == len(values):
            gains[model].append(fmean(values) - fmean(copied))
    return gains


def _means(
    model: str, cells: Sequence[Cell], calls: Sequence[Call], gains: Sequence[float]
) -> Means:
    own = [cell for cell in cells if cell.model == model]
    off = [cell for cell in own if cell.distance]
    made = [call for call in calls if call.model == model]
    return Means(
        model=model,
        stacks=own[0].stacks,
        mean_psnr_db=mean(cell.psnr_db for cell in own),
        mean_ssim=mean(cell.ssim for cell in own),
        mean_psnr_db_off_diagonal=mean(cell.psnr_db for cell in off),
        mean_ssim_off_diagonal=mean(cell.ssim for cell in off),
        psnr_db_by_distance={
            str(d): mean(cell.psnr_db for cell in off if cell.distance == d)
            for d in sorted({cell.distance for cell in off})
        },
        scenes=len({call.scene for call in calls}),
        gain_db=mean(gains),
        gain_error_db=stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None,
        sharper_gain_db=mean(cell.sharper_gain_db for cell in off),
        restored=mean(cell.restored for cell in off),
        pooled_psnr_db_off_diagonal=mean(cell.pooled_psnr_db for cell in off),
        focus_accuracy=mean(call.focus_share for call in made),
        focus_error=mean(call.focus_error for call in made),
    ).model_copy(
        update=_given(
            {f"mean_{name}_off_diagonal": mean(getattr(c, name) for c in off) for name in MORE}
        )
    )


def _fid(seen: Seen | None, model: str) -> dict[str, float]:
    """Return the fields of `Means` that tell of FID, none where it is not known."""
    distance, images = seen.distance(model) if seen is not None else (None, 0)
    return {} if distance is None else {"fid": distance, "fid_images": images}


def _shares(calls: Sequence[Call], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return by model the fields of `Means` that say how often it is no worse than another."""
    reference = next((name for name in names if _kind(name)[0] == REFERENCE), "")
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for field, than in (("no_worse_than_copy", COPY), ("no_worse_than_reference", reference)):
        for model, share in no_worse(calls, than).items():
            if model != than:
                found[model][field] = share
    return found


def _given(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that there are, None where there is none."""
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


@dataclass(frozen=True)
class Scoring:
    """What is scored on what: models and a source of true stacks, by their names.

    `size` is that of the stacks, which is what models are given; None leaves a folder its own.
    `metric_weights` is the folder with the weights of LPIPS, DISTS and FID, or of some of them.
    `register` moves a folder's frames onto each other before anything else.
    """

    models: Sequence[str]
    source: str = SYNTHETIC
    scenes: int = SCENES
    size: Size | None = None
    how: Comparison = Comparison()
    metric_weights: Path | None = None
    register: bool = False

    def key(self, stacks: str) -> str:
        """Return the hash of all that scores on stacks of this hash depend on, shipped weights and
        how they are computed included."""
        shipped = list(map(sha256, (DEFAULT_WEIGHTS, SHIPPED_WEIGHTS, TABLE_FILE)))
        models = {spec: content_of(spec) for spec in self.models}
        own = vars(self) | {"how": [*self.how.inputs, self.how.per_scene, self.how.size]}
        weights = weights_in(self.metric_weights) if self.metric_weights else {}
        own["metric_weights"] = {name: sha256(path) for name, path in weights.items()}
        code = source_hash("benchmarks")
        return key_of(**own | {"models": models, "shipped": shipped, "stacks": stacks}, code=code)


def evaluate_scoring(
    scoring: Scoring, out: Path | None = None, say: Callable[[str], object] = print
) -> Evaluation:
    """Score models beside the baselines, and write the rows to `out`, the scenes' own beside it.

    Interrupted, the same call goes on from the scores kept beside `out`. UserError for a model or
    source that there is not.
    """
    check_source(scoring.source)
    rendered = is_rendered(scoring.source)
    if scoring.register and rendered:
        raise UserError(
            f"{scoring.source} is rendered, and its frames do not move: leave --register out"
        )
    kept = None if out is None else out.with_name(f"{out.name}.features")
    how = replace(scoring.how, **open_networks(scoring.metric_weights, kept)._asdict())
    always = baselines()
    specs = [spec for spec in scoring.models if spec not in {model.name for model in always}]
    opened = [replace(open_any(spec), name=spec) for spec in specs]
    hashes = {spec: hash_of(spec) for spec in specs}  # of what is a model: a folder may be a home
    chosen = (scoring.source, scoring.scenes, scoring.size, scoring.register)
    stacks, known_by = true_stacks(*chosen)
    note = None if rendered or scoring.register else note_of_motion(stacks)
    if note is not None:
        say(note)
    ledger = Ledger()
    if out is not None and kept is not None:
        ledger = Ledger(out.with_name(f"{out.name}.scores"), scoring.key(known_by))
        if len(ledger):
            say(f"going on after {len(ledger)} calls kept in {out.name}.scores")
        else:
            rmtree(kept, ignore_errors=True)
    name = source_name(scoring.source) + REGISTERED * scoring.register
    found = evaluate_models([*opened, *always], stacks, name, how, ledger).of_files(hashes)
    if out is not None and kept is not None:
        write_rows(out, found.rows())
        keep_scenes(out, ledger)
        rmtree(kept, ignore_errors=True)
    ledger.remove()
    return found


def content_of(spec: str) -> str:
    """Return a hash of what a model's name stands for on this disk."""
    kind, named = _kind(spec)
    return hash_of(spec) or (find_places(named).key if named else kind)


def hash_of(spec: str) -> str | None:
    """Return the hash of the file or folder that a model's name stands for; None for no such."""
    place = place_of(spec)
    path = shipped_student(place) or Path(place)
    return sha256(path) if path.exists() else None


def _kind(spec: str) -> tuple[str, str]:
    """Return kind and place of a model's name, such as of `reference:DIR@25/1`."""
    kind, _, named = spec.partition("@")[0].partition(":")
    return kind, named


def evaluate_run(
    folder: Path, reference: str, scenes: int, positions: Sequence[int], size: Size
) -> Evaluation:
    """Score the reference, the student and the files of a run that this machine executes on a few
    synthetic scenes, and write the run's evaluate.json."""
    specs = {REFERENCE: f"{REFERENCE}:{reference}", STUDENT: str(folder / STUDENT)}
    for artifact in load_manifest(folder).artifacts:
        if get_target(artifact.target).cannot_run() is None:
            specs[artifact.name] = str(below(folder, artifact.name))
    hashes = {name: hash_of(spec) for name, spec in specs.items()}
    models = [replace(open_model(spec), name=name) for name, spec in specs.items()]
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + scenes)
    stacks = list(RenderedScenes(seeds, size, held_out_photos()))
    ledger = Ledger()
    how = Comparison(positions)
    found = evaluate_models([*models, *baselines()], stacks, SYNTHETIC, how, ledger)
    found = found.of_files(hashes)
    write_rows(folder / EVALUATE_FILE, found.rows())
    keep_scenes(folder / EVALUATE_FILE, ledger)
    return found
