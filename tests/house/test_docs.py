"""README and docs: links that lead somewhere, commands that exist, figures that agree."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from pocketfocus.cli.app import app
from pocketfocus.export.student import shapes
from pocketfocus.models.student import load_student
from tests.house.source import PACKAGE, ROOT, none, product

PAGES = (
    ROOT / "README.md",
    ROOT / "MODEL_CARD.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
TEXT = {".py", ".md", ".toml", ".yaml", ".json", ".jsonl", ".j2", ".html", ".js", ".css", ".txt"}
LINK = re.compile(r"\]\(([^)\s]+)\)")
OPTION = re.compile(r"--?[a-zA-Z][\w-]*")
README_LINES, FIRST_SCREEN = 150, 35


def page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere() -> None:
    broken = []
    for path in PAGES:
        for link in LINK.findall(path.read_text(encoding="utf-8")):
            place, _, anchor = link.partition("#")
            there = (path.parent / place).resolve() if place else path
            is_broken = not there.exists() or (anchor and anchor not in anchors(there))
            if not re.match(r"\w+:", link) and is_broken:
                broken.append(f"{page(path)}: {link}")
    none(broken)


def test_readme_shows_the_point_on_its_first_screen() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < README_LINES
    first = "\n".join(lines[:FIRST_SCREEN])
    for needed in ("make demo", "make test", ".venv/bin/pocketfocus", "source .venv/bin/activate"):
        assert needed in first, needed
    (picture,) = re.findall(r"^!\[.+\]\((.+)\)$", first, re.MULTILINE)
    with Image.open(ROOT / picture) as opened:
        assert opened.width > 800


def rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of all tables of a page, by the heads of their columns."""
    heads: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells
        elif not re.fullmatch(r"[-:| ]+", line):
            yield dict(zip(heads, cells, strict=True))


HEADLINE = "frames of 640×896, nine real phone scenes"


def test_readmes_figures_are_the_measured_ones() -> None:
    measured = [row for row in rows(ROOT / "docs/measured.md") if HEADLINE in row]
    shown = [row for row in rows(ROOT / "README.md") if HEADLINE in row]
    assert len(shown) == 4
    assert shown == measured


def test_sizes_that_the_shipped_student_takes_are_said_as_they_are() -> None:
    student = load_student()
    sizes = [student.photo_size, *shapes(student.photo_size, student.multiple)]
    text = (ROOT / "docs/refocus.md").read_text(encoding="utf-8")
    assert set(re.findall(r"multiples of (\d+)", text)) == {str(student.multiple)}
    found = re.search(r"unless said otherwise ([\d×, and]+)", text)
    assert found is not None
    said = re.findall(r"(\d+)×(\d+)", found[1])
    assert {(int(h), int(w)) for w, h in said} == set(sizes)


def commands(path: Path) -> Iterator[list[str]]:
    """Words of every command in a page's blocks of shell, and of those in its running text."""
    text = path.read_text(encoding="utf-8")
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in (block if kind in ("", "sh") else "").replace("\\\n", " ").splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            for is_between, part in groupby(words, lambda word: word in ("&&", "|", ";")):
                if not is_between:
                    yield list(part)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (found.split() for found in re.findall(rf"`((?:{PACKAGE}|python -m) [^`]+)`", prose))


GROUP: Any = typer.main.get_command(app)


def unknown(words: list[str]) -> str:
    """What of a command line the command does not know; "" when it knows all."""
    if words[:2] == ["python", "-m"] and words[2].startswith(f"{PACKAGE}."):
        return "" if find_spec(words[2]) else f"no module {words[2]}"
    started = words[:1] == [PACKAGE] or ["-m", PACKAGE] in map(list, pairwise(words))
    name, *rest = words[words.index(PACKAGE) + 1 :] if started else [""]
    if not re.fullmatch("[a-z][a-z-]*", name):
        return ""  # no command of ours, or a placeholder
    if name not in GROUP.commands:
        return f"no command {name}"
    shown = (each for each in GROUP.commands[name].params if not getattr(each, "hidden", False))
    known = {"--help", "--debug"}.union(*(each.opts for each in shown))
    given = (match[0] for word in rest if (match := OPTION.match(word)))
    return ", ".join(option for option in given if option not in known)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("pocketfocus verify build/mine --positions 4", ""),
        ("pocketfocus verify build/mine --colour 4", "--colour"),
        ("pocketfocus polish build/mine", "no command polish"),
        ("python -m pocketfocus.benchmarks.tables build/demo", ""),
        ("python -m pocketfocus.benchmarks.chairs", "no module pocketfocus.benchmarks.chairs"),
        ("cmake --build out", ""),
    ],
)
def test_what_a_command_does_not_know_is_seen(line: str, wrong: str) -> None:
    assert unknown(line.split()) == wrong


def test_commands_of_the_docs_exist() -> None:
    """With these options, by the names that `--help` shows."""
    pages = [path for path in PAGES if path.name != "CHANGELOG.md"]  # which tells of former ones
    none(
        f"{page(path)}: {wrong}: {' '.join(words)}"
        for path in pages
        for words in commands(path)
        if (wrong := unknown(words))
    )


def test_no_absolute_path_of_a_machine() -> None:
    files = [ROOT / module.path for module in product()]
    files += [*(ROOT / "tests").rglob("*.py"), *ROOT.glob("*.*"), *PAGES]
    files += [ROOT / "Makefile", ROOT / ".ci/run", *(ROOT / PACKAGE).rglob("*.json*")]
    machine = re.compile("|".join(("/home/" + r"\w", "/root/" + r"\w", "/Users/" + r"\w")))
    found = []
    for path in files:
        if path.suffix in TEXT | {""} and path.is_file():
            text = path.read_text(encoding="utf-8")
            if f"{ROOT}/" in text or machine.search(text):
                found.append(page(path))
    none(found)
