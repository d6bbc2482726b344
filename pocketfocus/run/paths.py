"""Names that a file gives of other files: each resolved below its folder, or refused."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pocketfocus.run.errors import UserError


def below(root: Path, name: str) -> Path:
    """Return `root/name`, whether or not it is there.

    `name` comes from a manifest or a bundle that anyone may have written: UserError unless it is a
    plain path below `root`, as the disk has it too, its links followed.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or set(name) & {"\\", "\0"}:
        raise UserError(
            f"{name!r} is no path below {root}: what lists it was not written by pocketfocus, make "
            "it again"
        )
    path = Path(root, *parts)
    try:
        path.exists()
        leaves = not path.resolve().is_relative_to(Path(root).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle
        raise UserError(f"{name[:80]!r} is no path below {root} ({error}): make it again") from None
    if leaves:
        raise UserError(f"{path} is a link out of {root}: put the file itself there")
    return path
