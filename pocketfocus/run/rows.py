"""Rows of the JSON files that stages write: each a model of its kind, checked as it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import alone_in, read_json, write_json
from pocketfocus.run.progress import say

ANEW = "delete the file and run the stage that writes it"
MERGING_S = 60.0  # an export of the same run may take longer


class Row(BaseModel):
    """A row; an optional field that was not given is not written."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def given(self) -> dict[str, Any]:
        """Return the fields that were given, in order, to make a row with more of them."""
        return {name: value for name, value in self if name in self.model_fields_set}

    def as_json(self) -> dict[str, Any]:
        """Return the fields that the file gets, in order."""
        return self.model_dump(exclude_unset=True)


class FileRow(Row):
    """A row of what a device made of one file, which it names by its hash too.

    A row of what is no file of the run, such as the reference, has no hash.
    """

    artifact: str
    target: str
    precision: str
    device: str
    sha256: str | None = None

    @property
    def place(self) -> tuple[str, ...]:
        """Return what a file of rows has one row of."""
        return self.artifact, self.device


R = TypeVar("R", bound=Row)
M = TypeVar("M", bound=BaseModel)
F = TypeVar("F", bound=FileRow)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write `{"schema_version": 1, "rows": [...]}`."""
    write_json(path, {"rows": [row.as_json() for row in rows]})


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Return the rows of a file written by `write_rows`.

    UserError when it is missing, or names the first field of a row that is not as `kind` has it.
    """
    rows = enumerate(contents(path), 1)
    return [part_of(f"{path}, row {number}", kind, each) for number, each in rows]


def read_current(path: Path, kind: type[F], files: Mapping[str, str]) -> list[F]:
    """Return the rows of `read_rows` that tell of `files`, hashes by their names, as they are now.

    That others are left out is said in one line.
    """
    rows = read_rows(path, kind)
    found = [row for row in rows if is_of(row, files)]
    if len(found) < len(rows):
        say(
            f"{path}: {len(rows) - len(found)} of {len(rows)} rows left out, which tell of other "
            "files than the run has now: run the stage that writes it again"
        )
    return found


def contents(path: Path) -> list[Any]:
    """Return what a file has for rows, unchecked."""
    rows = read_json(path).get("rows")
    if not isinstance(rows, list):
        raise UserError(f"{path} holds no rows: delete it and run the stage that writes it")
    return rows


def part_of(place: str, kind: type[M], content: object, way_out: str = ANEW) -> M:
    """Return a part of a JSON file; UserError names its place and the first field that is wrong."""
    try:
        return kind.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "all of it"
        raise UserError(f"{place}, {field}: {first['msg']}: {way_out}") from None


def merge_rows(
    path: Path, kind: type[F], rows: Sequence[F], devices: Sequence[str], files: Mapping[str, str]
) -> None:
    """Write `rows` in place of older ones of these `devices`; those of other devices stay.

    Older rows of a file go when it is none of `files`, hashes by their names, any more.
    """
    with alone_in(path.parent, "merge rows", MERGING_S):  # several phones finish at once
        ours = {row.place for row in rows}
        kept = [
            row
            for row in (read_rows(path, kind) if path.exists() else ())
            if row.device not in devices and row.place not in ours and is_of(row, files)
        ]
        write_rows(path, [*kept, *rows])


def is_of(row: FileRow, files: Mapping[str, str]) -> bool:
    """Return whether a row tells of one of these files, hashes by their names, as it is now."""
    return row.sha256 == files.get(row.artifact)
