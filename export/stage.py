"""Write the files that were requested, and the manifest that says what they are.

A file is made again only when something it depends on has changed: the weights, the recipe, the
calibration photos, this code or a toolchain's version. The manifest is saved after every file, so
that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib import metadata, util
from itertools import product
from pathlib import Path
from typing import Any

import psutil
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pocketfocus.export.isolated import write_isolated
from pocketfocus.export.network import Network, Source
from pocketfocus.export.phases import Phases
from pocketfocus.export.provenance import shared_provenance
from pocketfocus.export.quiet import quiet
from pocketfocus.export.student import STUDENT, Log, student_source
from pocketfocus.export.targets import TARGETS, Options, Target, Written, get_target, get_targets
from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.plan import statement, summary
from pocketfocus.quantize.recipes import NAME, RECIPES, Recipe, get_recipe, recipe_from
from pocketfocus.quantize.toolchains import TOOLCHAINS
from pocketfocus.run.cache import source_hash
from pocketfocus.run.child import Say
from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import alone_in, key_of, sha256, size_bytes, write_atomic
from pocketfocus.run.manifest import (
    MANIFEST_FILE,
    Artifact,
    CalibrationInputs,
    Manifest,
    load_manifest,
)
from pocketfocus.run.paths import below
from pocketfocus.run.processes import Work, WorkFailed, cores, workers
from pocketfocus.run.scratch import temporary_files_in

CHECKS = "checks"
THREADS = 2
FULL_PRECISIONS = ("int4",)
TOGETHER = 4  # a student's files; for fewer, processes would cost more than they save
NEEDS_BYTES = 3 << 30  # of memory, that a process takes which writes a file
CALL = f"{__name__}:work"
ARTIFACT = TypeAdapter(Artifact)

Files = list[tuple[Target, Recipe]]


@dataclass(frozen=True)
class Export:
    """The files that are requested.

    Attributes:
        out: their folder.
        targets: names of `TARGETS`.
        precisions: names of shipped recipes, or YAML files.
        options: of targets, for those that have them; else the recipes say.
        threads: of PyTorch in a process that writes one file.
        sizes: of the photos that a student's files take beside its own, see `student_source`.
    """

    out: Path
    targets: Sequence[str]
    precisions: Sequence[str]
    options: Options = field(default_factory=dict)
    threads: int = THREADS
    sizes: Sequence[Size] | None = ()

    def files(self, of_reference: bool = False) -> Files:
        """Targets and recipes; UserError for unknown names, a recipe that cannot be read, an option
        that cannot be, or a target whose files cannot be written on this machine."""
        recipes = [get_recipe(name) for name in self.precisions]
        targets = [get_target(name) for name in self.targets]
        for target, recipe in product(get_targets(), recipes):
            target.adapted(recipe, self.options)  # an option that cannot be, of whatever target
        for target in targets:
            reason = target.cannot_write()
            if reason is not None:
                raise UserError(f"{target.name} files cannot be written here: {reason}")
        return [
            (target, target.adapted(recipe, {**usual, **self.options}))
            for target in targets
            for usual in [target.reference_options if of_reference else {}]
            for recipe in recipes
        ]

    def once(self) -> Files:
        """The targets, each with the recipe of a network without weights."""
        targets = map(get_target, dict.fromkeys(self.targets))
        return [(t, t.adapted(get_recipe(t.plain), self.options)) for t in targets]


@dataclass(frozen=True)
class Run:
    """What goes where: the networks of a source, each as every file that was requested."""

    request: Export
    files: Files
    source: Source
    log: Log

    @property
    def out(self) -> Path:
        return Path(self.request.out)


@dataclass(frozen=True)
class Requested:
    """A file that was requested."""

    network: Network
    target: Target
    recipe: Recipe

    @property
    def name(self) -> str:
        """Its path below the run's folder."""
        return path_of(self.target, self.recipe.name, self.network.name)

    def paths(self, run: Run) -> tuple[Path, Path]:
        """Where it lies, and where its check does if it has one."""
        return run.out / self.name, run.out / CHECKS / f"{self.network.name}.safetensors"


def export_run(
    student_dir: Path | None,
    request: Export,
    photos: Sequence[Path] | None = None,
    log: Log = print,
) -> Manifest:
    """Write a student with every target × precision, skipping what is there already; the manifest.

    `student_dir` None takes the run's own student when `out` has one, else the shipped one.
    `photos` calibrate the integer files; None for the bundled ones. Files of the same student that
    this call does not ask for stay, those of another student go. UserError as of `Export.files`,
    for a recipe that fits no layer, a student or photos that cannot be read, or a folder that
    cannot be written or that another export writes to.
    """
    files = request.files()
    out = Path(request.out)
    with alone_in(out, "export"):
        source = student_source(student_dir, out, photos, request.sizes, log)
        layers = layers_of(source.networks[0].make())
        for target, recipe in files:
            recipe.requested(target.toolchain, layers)  # UserError before anything is written
        return write_files(Run(request, files, source, log))


def export_full(
    spec: str, request: Export, parts: Sequence[str], size: tuple[int, int], log: Log = print
) -> Manifest:
    """Write networks of a reference for photos of (H, W) instead: names of its `PARTS`.

    UserError, before anything long starts, as of `Export.files` and `reference_source`, and for a
    target that takes no whole references.
    """
    from pocketfocus.export.reference import reference_source  # diffusers, which takes seconds

    able = full_targets()
    for name in request.targets:
        if name not in able:
            raise UserError(
                f"--full writes no {name} files: choose from {', '.join(able)} with --targets"
            )
    files = request.files(of_reference=True)
    with alone_in(Path(request.out), "export"):
        return write_files(Run(request, files, reference_source(spec, parts, size), log))


def full_targets() -> tuple[str, ...]:
    """The targets that take the networks of a whole reference."""
    return tuple(target.name for target in get_targets() if target.writes_references)


def write_files(run: Run) -> Manifest:
    """Write every network × target × precision; the manifest, saved after every file."""
    old = previous(run)
    known = {artifact.name: artifact for artifact in old.files}
    requested = [
        Requested(network, *file)
        for network in run.source.networks
        for file in (run.request.once() if network.once else run.files)
    ]
    missing = [one for one in requested if not is_there(run, one, known)]
    current = {one.name for one in requested} - {one.name for one in missing}
    for artifact in written(run, missing):
        known[artifact.name] = artifact
        current.add(artifact.name)
        assemble(run, known, old, current).save(run.out)
    manifest = assemble(run, known, old, current)
    manifest.save(run.out)
    return manifest


def is_there(run: Run, requested: Requested, known: Mapping[str, Artifact]) -> bool:
    """Whether the file is there already, and nothing that it depends on has changed."""
    path, check = requested.paths(run)
    old, needs_check = known.get(requested.name), requested.network.check is not None
    if old is None or not path.exists() or (needs_check and not check.exists()):
        return False
    if old.key != file_key(run, requested) or sha256(path) != old.sha256:
        return False
    run.log(f"{requested.name}: unchanged, kept")
    return True


def written(run: Run, requested: Sequence[Requested]) -> Iterator[Artifact]:
    """Write files one after another; many of a student's, by as many processes as there are cores
    and memory for."""
    memory = psutil.virtual_memory().available // NEEDS_BYTES
    count = min(cores(), memory, len(requested))
    if len(requested) < TOGETHER or count < 2 or run.source.again is None:
        yield from (make(run, one) for one in requested)
        return
    # Left in this order: what waits is cancelled, what works is killed, and only then waited for.
    with ThreadPoolExecutor(count) as pool, workers(count) as borrowed, ExitStack() as pending:

        def one_of(one: Requested) -> Artifact:
            try:
                with borrowed() as worker:
                    made = worker.run(order(run, one), on_progress=run.log)
            except WorkFailed as error:
                raise UserError(f"{one.name} was not written: {error}") from error
            return ARTIFACT.validate_python(made.fields)

        futures = [pool.submit(one_of, one) for one in requested]
        pending.callback(lambda: [future.cancel() for future in futures])
        for future in as_completed(futures):
            yield future.result()


def order(run: Run, requested: Requested) -> Work:
    """What another process is told, to write a file of a student."""
    return Work(
        CALL,
        {
            "out": str(run.out),
            "source": json.dumps(run.source.again),
            "network": requested.network.name,
            "target": requested.target.name,
            "recipe": requested.recipe.model_dump(mode="json"),
        },
    )


def work(
    arguments: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], say: Say
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Write a file of a student, in the process: the artifact as JSON."""
    out, target = Path(arguments["out"]), get_target(arguments["target"])
    source = source_again(out, arguments["source"])
    files = [(target, recipe_from(arguments["recipe"], "the work"))]
    run = Run(Export(out, [target.name], []), files, source, say)
    network = next(each for each in source.networks if each.name == arguments["network"])
    with uncollected():
        return asdict(make(run, Requested(network, *files[0]))), {}


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for garbage once, at the end: among the millions of objects of a graph that is lowered
    it takes a tenth of the time, and there is little."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


@lru_cache(maxsize=1)
def source_again(out: Path, again: str) -> Source:
    """The source of a student's files, once in a process that writes several."""
    made = json.loads(again)
    photos = None if made["photos"] is None else [Path(path) for path in made["photos"]]
    sizes = [(height, width) for height, width in made["sizes"]]
    return student_source(None, out, photos, sizes, lambda line: None)


def previous(run: Run) -> Manifest:
    """What the folder's manifest says; files of another student or reference are deleted, and it
    then says nothing.

    So are those of a reference at another size. UserError for the networks of a reference in the
    folder of a student, and the other way round.
    """
    nothing = Manifest(run.source.manifest.size, [])
    if not (run.out / MANIFEST_FILE).exists():
        return nothing
    try:
        manifest = load_manifest(run.out)
    except UserError as error:
        run.log(f"starting a new manifest: {error}")
        return nothing
    theirs, ours = manifest, run.source.manifest
    if manifest.artifacts and bool(theirs.student_sha256) != bool(ours.student_sha256):
        whose = "a student" if theirs.student_sha256 else "a reference"
        raise UserError(f"{run.out} is the run of {whose}: choose another folder with --out")
    same_reference = (theirs.reference, theirs.size) == (ours.reference, ours.size)
    if theirs.student_sha256 == ours.student_sha256 and (ours.student_sha256 or same_reference):
        return manifest
    for artifact in manifest.files:
        path = below(run.out, artifact.name)
        if network_of(run, artifact) and path.exists():
            run.log(f"{artifact.name}: of another student or reference, deleted")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assemble(run, {}, nothing, set()).save(run.out)
    return nothing


def make(run: Run, requested: Requested) -> Artifact:
    """Write one file."""
    network, target, recipe = requested.network, requested.target, requested.recipe
    name, (path, _) = requested.name, requested.paths(run)
    started = time.monotonic()
    try:
        written = write(run, requested)
    except Exception as error:
        error.add_note(f"while writing {path}")
        raise
    size, most = size_bytes(path), written.applied.get("peak_mib")
    memory = f", at most {most / 1024:.1f} GiB of memory" if most is not None else ""
    run.log(f"{name}: {size / 1e6:.1f} MB, {time.monotonic() - started:.0f} s{memory}")
    return Artifact(
        name=name,
        target=target.name,
        precision=recipe.name,
        sha256=sha256(path),
        bytes=size,
        key=file_key(run, requested),
        inputs=written.inputs or network.inputs,
        outputs=written.outputs or network.outputs,
        recipe=recipe.model_dump(mode="json"),
        applied=written.applied,
        delegation=written.delegation,
        functions=written.functions,
        multiple=written.multiple,
        compatibility=target.compatibility(written.applied),
    )


def write(run: Run, requested: Requested) -> Written:
    """Write a file, and its check if it has one, here or in a process of its own."""
    network, target, recipe = requested.network, requested.target, requested.recipe
    path, check = requested.paths(run)
    notes = target.notes[recipe.weight_bits]
    if network.isolated:
        with write_atomic(path) as scratch, write_atomic(check) as check_scratch:
            written = write_isolated(
                network, target, recipe, scratch, check_scratch, run.request.threads
            )
        return replace(written, applied=written.applied | {"note": notes})
    with write_atomic(path) as scratch, temporary_files_in(scratch.parent):
        phases = Phases(path.name, target.phases, lambda line: None)
        with shared_provenance():
            written = target.write(network, recipe, scratch, phases)
        with quiet():
            layers = target.read(scratch, network)
    stated = {
        "note": "; ".join(filter(None, (summary(layers), notes))),
        "layers": statement(
            recipe.requested(target.toolchain, layers),
            TOOLCHAINS[target.toolchain].choices(recipe, network.make()),
            layers,
        ),
    }
    if recipe.calibrated:
        stated["calibration_sha256"] = run.source.manifest.calibration["sha256"]
    return replace(written, applied=written.applied | stated)


def assemble(run: Run, known: Mapping[str, Artifact], old: Manifest, current: Set[str]) -> Manifest:
    """The manifest of these artifacts, by network, target and precision, shipped ones first.

    What is not among those `current`, by name, is as an earlier call wrote it: of that one are
    sizes, calibration and tools then too, as `old` tells them.
    """
    networks, targets, shipped = list(run.source.names), list(TARGETS), list(RECIPES)

    def place(artifact: Artifact) -> tuple[int, int, int, str]:
        name = artifact.precision
        rank = shipped.index(name) if name in shipped else len(shipped)
        network = networks.index(network_of(run, artifact))
        return network, targets.index(artifact.target), rank, name

    ours = [artifact for artifact in known.values() if network_of(run, artifact)]
    once = {network.name for network in run.source.networks if network.once}
    found: dict[bool, list[Artifact]] = {True: [], False: []}
    for artifact in sorted(ours, key=place):
        found[network_of(run, artifact) in once].append(artifact)
    manifest, artifacts = run.source.manifest, found[False]
    calibration, *others = calibrations(artifacts, manifest, old) or [CalibrationInputs()]
    sizes = [function.size for artifact in artifacts for function in artifact.functions]
    return replace(
        manifest,
        artifacts=artifacts,
        calibration=calibration,
        other_calibrations=tuple(others),
        sizes=tuple(dict.fromkeys((*manifest.sizes, *sizes))),
        render=manifest.render and replace(manifest.render, files=found[True]),
        tools=tools() if {each.name for each in ours} <= current else both(old.tools, tools()),
    )


def calibrations(
    artifacts: Sequence[Artifact], ours: Manifest, old: Manifest
) -> list[CalibrationInputs]:
    """What artifacts were calibrated with, each once, that of this call first; a reference's files
    name none by its hash, and neither does its manifest."""
    used = {str(artifact.applied.get("calibration_sha256", "")) for artifact in artifacts}
    found: dict[str, CalibrationInputs] = {}
    for each in (ours.calibration, old.calibration, *old.other_calibrations):
        if each and each.get("sha256", "") in used:
            found.setdefault(each.get("sha256", ""), each)
    return list(found.values())


def both(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Versions of packages where files were made with either."""
    versions = {
        name: dict.fromkeys([*old.get(name, version).split(", "), version])
        for name, version in new.items()
    }
    return {**old, **{name: ", ".join(every) for name, every in versions.items()}}


def path_of(target: Target, precision: str, network: str = STUDENT) -> str:
    """Path of a file below the run's folder."""
    return f"{target.name}/{network}-{precision}{target.suffix}"


def network_of(run: Run, artifact: Artifact) -> str:
    """The network of an artifact that lies where this stage writes such ones; "" of any other."""
    if artifact.target not in TARGETS or not NAME.fullmatch(artifact.precision):
        return ""
    target = get_target(artifact.target)
    return next(
        (n for n in run.source.names if artifact.name == path_of(target, artifact.precision, n)), ""
    )


def file_key(run: Run, requested: Requested) -> str:
    """Hash of everything that a file depends on."""
    network, target, recipe = requested.network, requested.target, requested.recipe
    return key_of(
        network=network.name,
        target=target.name,
        recipe=recipe.model_dump(mode="json"),
        source=run.source.key,
        calibration=run.source.manifest.calibration.get("sha256") if recipe.calibrated else "",
        sizes=[one.size for one in network.every],
        code=code_hash(),
        tools=tools(),
    )


def code_hash() -> str:
    """Hash of the sources that write files."""
    return source_hash("mobile", "quantize", "export")


def tools() -> dict[str, str]:
    """Versions of the packages that shape files, of those that are installed."""
    packages = ["torch", *(name for target in get_targets() for name in target.packages)]
    return {name: metadata.version(name) for name in packages if util.find_spec(name)}
