"""What was made before, and of what: results that are known by a key of all that they depend on."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pocketfocus
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import key_of, read_json, sha256, write_json

PACKAGE = Path(pocketfocus.__file__).parent
CORE = ("models", "data", "photos", "run")
SOURCES = {".py", ".yaml", ".html", ".json"}
NOT_OURS = {"page", "node_modules"}  # the browser\'s page makes no file of a run


class Kept:
    """A JSON file with the fields that were made so far of inputs known by `key`.

    Fields are empty when the file is missing, broken or of another key: what it holds is then made
    anew. A result that takes long is saved again after each part, so that it can go on.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.fields: dict[str, Any] = {}
        try:
            found = read_json(path)
        except UserError:
            return
        if found.pop("key", None) == key:
            del found["schema_version"]
            self.fields = found

    def save(self, **fields: Any) -> None:
        """Add fields and write all of them, atomically."""
        self.fields |= fields
        write_json(self.path, {**self.fields, "key": self.key})


@cache
def source_hash(*folders: str) -> str:
    """Hash the package's own sources in the core and in these folders, whole: what a stage that is
    kept in a run's folder depends on beside its inputs."""
    files = list(PACKAGE.glob("*.py"))
    for folder in (*CORE, *folders):
        files += (
            path
            for path in (PACKAGE / folder).rglob("*")
            if path.suffix in SOURCES and not NOT_OURS.intersection(path.parts)
        )
    return key_of(**{path.relative_to(PACKAGE).as_posix(): sha256(path) for path in files})
