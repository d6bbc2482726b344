"""Export a reference's own networks: one process a file, and the manifest that says what they are.

Unlike a student these are networks of a pipeline, not a whole call: see `parts`. A file that is
there already, made from the same weights by the same code, is kept.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pocketfocus.data.scenes import TRAIN_PHOTOS
from pocketfocus.export.full.parts import SMALLEST, check_size, named_parts, open_reference
from pocketfocus.export.stage import TOOLS, Log, check_writable, code_hash
from pocketfocus.export.targets import Target, get_target
from pocketfocus.models.places import find_places
from pocketfocus.quantize.recipes import Recipe, fields_of, for_ios, get_recipe
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import key_of, sha256, size_bytes, write_atomic
from pocketfocus.run.manifest import (
    MANIFEST_FILE,
    Artifact,
    Delegation,
    Manifest,
    TensorSpec,
    load_manifest,
)
from pocketfocus.run.processes import death, run_module

WORKER = "pocketfocus.export.full.worker"
TARGETS = ("executorch", "coreml")
PRECISIONS = ("int4",)
IOS = 18
FORM = "blocks"  # palettes by k-means take hours at full size
CHECKS = "checks"
THREADS = 2


@dataclass(frozen=True)
class FullExport:
    """What is asked for.

    Attributes:
        reference: a spec of `load_reference`.
        out: the folder of the files.
        parts: names of `PARTS`.
        targets: names of `TARGETS`.
        precisions: names of recipes.
        size: (H, W) of the photo, pixels.
        ios: the oldest that reads the Core ML files.
        form: of their 4-bit weights.
        threads: of PyTorch, while converting.
    """

    reference: str
    out: Path
    parts: Sequence[str] = ("encoder", "decoder", "unet")
    targets: Sequence[str] = TARGETS
    precisions: Sequence[str] = PRECISIONS
    size: tuple[int, int] = (SMALLEST, SMALLEST)
    ios: int = IOS
    form: str = FORM
    threads: int = THREADS


def export_full(asked: FullExport, log: Log = print) -> Manifest:
    """Write every part × target × precision; the manifest, which is saved after every file.

    Raises UserError before anything long starts: for unknown names, a form that the iOS does not
    read, a missing toolchain, a reference that cannot be read, or a size that it does not take.
    """
    parts = [part.name for part in named_parts(asked.parts)]
    recipes = [for_ios(get_recipe(name), asked.ios, asked.form) for name in asked.precisions]
    targets = [known_target(name) for name in asked.targets]
    check_writable(targets)
    reference = open_reference(asked.reference)
    check_size(reference, asked.size)
    manifest = Manifest(
        size=asked.size,
        artifacts=[],
        reference=asked.reference,
        sigma_steps=(float(reference.scheduler.config.sigma_max),),
        calibration={"photos": list(TRAIN_PHOTOS), "positions": list(range(9))},
        tools={name: metadata.version(name) for name in TOOLS},
    )
    known = previous(asked.out)
    weights = weights_key(asked.reference)
    for part in parts:
        for target in targets:
            for recipe in recipes:
                artifact = make(asked, part, target, recipe, weights, known, log)
                known[artifact.name] = artifact
                manifest = replace(manifest, artifacts=list(known.values()))
                manifest.save(asked.out)
    return manifest


def known_target(name: str) -> Target:
    """A target that whole networks are written for."""
    if name not in TARGETS:
        raise UserError(
            f"--full writes no {name} files: choose from {', '.join(TARGETS)} with --targets"
        )
    return get_target(name)


def previous(out: Path) -> dict[str, Artifact]:
    """What the folder's manifest lists, by name; UserError when it is that of a student."""
    if not (out / MANIFEST_FILE).exists():
        return {}
    manifest = load_manifest(out)
    if manifest.student_sha256:
        raise UserError(f"{out} is the run of a student: choose another folder with --out")
    return {artifact.name: artifact for artifact in manifest.artifacts}


def weights_key(spec: str) -> str:
    """What tells one reference from another without reading gigabytes: places, sizes, times."""
    places = find_places(spec)
    files = [p for root in {places.base, places.unet[0]} for p in sorted(Path(root).rglob("*.*"))]
    stats = {str(path): [s.st_size, s.st_mtime_ns] for path in files for s in [path.stat()]}
    return key_of(places=asdict(places), files=stats)


def make(
    asked: FullExport,
    part: str,
    target: Target,
    recipe: Recipe,
    weights: str,
    known: dict[str, Artifact],
    log: Log,
) -> Artifact:
    """Write one file, unless it is there already."""
    name = f"{target.name}/{part}-{recipe.name}{target.suffix}"
    path, check = asked.out / name, asked.out / CHECKS / f"{part}.safetensors"
    key = key_of(
        weights=weights,
        recipe=fields_of(recipe),
        size=asked.size,
        code=code_hash(),
        tools={tool: metadata.version(tool) for tool in TOOLS},
    )
    old = known.get(name)
    if old and old.key == key and check.exists() and path.exists() and sha256(path) == old.sha256:
        log(f"{name}: unchanged, kept")
        return old
    started = time.monotonic()
    with write_atomic(path) as scratch, write_atomic(check) as check_scratch:
        result = run_worker(
            {
                "name": name,
                "reference": asked.reference,
                "part": part,
                "target": target.name,
                "recipe": fields_of(recipe),
                "size": list(asked.size),
                "threads": asked.threads,
                "path": str(scratch),
                "check": str(check_scratch),
            }
        )
    seconds, size = time.monotonic() - started, size_bytes(path)
    log(
        f"{name}: {size / 1e6:.1f} MB in {seconds:.0f} s, at most {result['peak_mib'] / 1024:.1f} "
        "GiB of memory"
    )
    delegation = result["delegation"]
    if delegation is not None:
        delegation = Delegation(**{**delegation, "fallen_out": tuple(delegation["fallen_out"])})
    measured = ("parameters", "seconds", "peak_mib", "peak_mib_after", "swapped_mib")
    return Artifact(
        name=name,
        target=target.name,
        precision=recipe.name,
        sha256=sha256(path),
        bytes=size,
        key=key,
        inputs=tensors(result["inputs"]),
        outputs=tensors(result["outputs"]),
        recipe=fields_of(recipe),
        taken=result["taken"] | {field: result[field] for field in measured},
        delegation=delegation,
    )


def run_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a process of its own, whose progress goes to standard error."""
    with tempfile.TemporaryDirectory(prefix="pocketfocus-full-") as folder:
        path, result = Path(folder) / "job.json", Path(folder) / "result.json"
        path.write_text(json.dumps({**job, "result": str(result)}), encoding="utf-8")
        ended = run_module(WORKER, str(path), captured=False)
        if ended.returncode or not result.is_file():
            raise UserError(
                f"the process that wrote {job['name']} {death(ended)}; see its output above, and "
                "choose a smaller --size if memory was short"
            )
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "mistake" in found:
        raise UserError(found["mistake"])
    return found


def tensors(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Tensor specs from JSON."""
    return tuple(
        TensorSpec(r["name"], tuple(r["shape"]), r["dtype"], (r["range"][0], r["range"][1]))
        for r in rows
    )
