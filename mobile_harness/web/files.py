"""The only files that the server gives: the built page, and the ONNX files of a run's manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import (
    MANIFEST_FILE,
    Artifact,
    Manifest,
    check_artifact,
    load_manifest,
)
from pocketfocus.run.paths import below

PAGE = Path(__file__).parent / "page" / "dist"
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Served:
    """A run as the page sees it.

    Attributes:
        folder: of the run.
        manifest: of the run.
        artifacts: by name; the ONNX files that were written and lie below `folder` without a link.
    """

    folder: Path
    manifest: Manifest
    artifacts: Mapping[str, Artifact]

    @property
    def stack_bytes(self) -> int:
        """Return the size of one stack [9,3,H,W] float32; all files are of one student."""
        stack, *_ = next(iter(self.artifacts.values())).outputs
        return FLOAT_BYTES * math.prod(stack.shape)

    def describe(self) -> dict[str, object]:
        """Return what the page has to know to call the files.

        `sizes` are the (H, W) of photos that a file takes; the page knows null as any whose sides
        are multiples of `multiple`, about as large as `size`.
        """
        from pocketfocus.models.student import StudentConfig  # torch; `load_served` has it already

        files = [
            {
                "name": artifact.name,
                "precision": artifact.precision,
                "bytes": artifact.bytes,
                "sha256": artifact.sha256,
                "inputs": [spec.name for spec in artifact.inputs],
                "outputs": [spec.name for spec in artifact.outputs],
                "sizes": None if artifact.multiple else [list(artifact.inputs[0].shape[-2:])],
            }
            for artifact in self.artifacts.values()
        ]
        multiple = StudentConfig.model_validate(self.manifest.student_config).multiple
        return {"size": list(self.manifest.size), "multiple": multiple, "files": files}


def load_served(folder: Path) -> Served:
    """Return the run in `folder`, hashes checked; UserError when it has no ONNX student."""
    manifest = load_manifest(folder)
    from pocketfocus.export.onnx import TARGET  # after what is missing was said: it takes seconds

    artifacts = {a.name: a for a in manifest.artifacts if a.target == TARGET.name}
    if not artifacts or not manifest.student_sha256:
        raise UserError(
            f"{folder} lists no ONNX file of a student, which is what a browser runs: "
            f"`pocketfocus export --targets {TARGET.name} --out {folder}` writes them"
        )
    for artifact in artifacts.values():
        check_artifact(folder, artifact)
        if plain_file(folder, artifact.name) is None:
            raise UserError(f"{artifact.name} in {folder} is a link: put the file itself there")
    served = Served(folder, manifest, artifacts)
    try:
        served.describe()
        if not served.stack_bytes:
            raise ValueError("its stack is empty")
    except (ValueError, IndexError) as error:  # pydantic's too
        reason = next(iter(str(error).splitlines()))
        raise UserError(
            f"{folder / MANIFEST_FILE} describes no student's file ({reason}): run export again"
        ) from None
    return served


def page_files(folder: Path = PAGE) -> dict[str, Path]:
    """Return the page's files by their path below `folder`; UserError when it was not built."""
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    if "index.html" not in files:
        raise UserError(
            f"the page is not built ({folder} is empty): run `make web` (needs Node.js)"
        )
    return files


def plain_file(folder: Path, name: str) -> Path | None:
    """Return folder/name when it is a file and no part of `name` is a symbolic link, else None."""
    root = folder.resolve()
    try:
        path = below(root, name)
    except UserError:
        return None
    return path if path.resolve() == path and path.is_file() else None
