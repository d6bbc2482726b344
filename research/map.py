"""The list of modules in docs/map.md, made of the first line of every module's docstring.

    python -m pocketfocus.research.map

writes it between the two marks of that page; what stands around them is written by hand.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("docs/map.md")
FOLDERS = (
    "pocketfocus",
    "quantize",
    "distill",
    "export",
    "mobile_harness",
    "benchmarks",
    "research",
)
FIRST, LAST = "<!-- modules: python -m pocketfocus.research.map -->", "<!-- end of modules -->"
LISTED = re.compile(rf"(?<={re.escape(FIRST)}\n).*?(?={re.escape(LAST)})", re.DOTALL)


def phrase(path: Path) -> str:
    """The first line of a module's docstring; "" where it has none."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.partition("\n")[0]


def folders(root: Path) -> Iterator[Path]:
    """Every folder with modules, each before those within it; symbolic links are not followed."""
    for name in FOLDERS:
        found = sorted(path.parent for path in (root / name).rglob("__init__.py"))
        yield from (path for path in found if "node_modules" not in path.parts)


def modules(root: Path) -> str:
    """The list: a heading a folder with its package's phrase, a line a module."""
    blocks: list[str] = []
    for folder in folders(root):
        place = folder.relative_to(root).as_posix()
        found = sorted(folder.glob("[!_]*.py"))
        lines = (f"- [{each.name}](../{place}/{each.name}): {phrase(each)}" for each in found)
        blocks += [
            f"**[{place}/](../{place})**: {phrase(folder / '__init__.py')}",
            "\n".join(lines),
        ]
    return "\n\n".join(filter(None, blocks)).join(("\n", "\n\n"))


def listed(page: str) -> str:
    """What stands between the page's marks; UserError where they are missing."""
    found = LISTED.search(page)
    if found is None:
        raise UserError(f"{PAGE} has no lines '{FIRST}' and '{LAST}': write them around the list")
    return found[0]


@reported("map")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the list anew."""
    parser = argparse.ArgumentParser(description="the list of modules in docs/map.md")
    parser.parse_args(arguments)
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    listed(page)
    with write_atomic(ROOT / PAGE) as scratch:
        scratch.write_text(LISTED.sub(lambda _: modules(ROOT), page), encoding="utf-8")


if __name__ == "__main__":
    main()
