"""docs/map.md lists every module as the module describes itself."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest

from pocketfocus.research import map as page_of_modules
from pocketfocus.run.errors import UserError
from tests.house.source import ROOT, none, product

FIX = "python -m pocketfocus.research.map"


def compared(page: str, expected: str) -> list[str]:
    """Every line that the page lacks or has too many, as a sentence."""
    said = {"- ": "stale", "+ ": "missing"}
    lines = difflib.ndiff(page_of_modules.listed(page).splitlines(), expected.splitlines())
    changed = [f"{said[line[:2]]}: {line[2:]}" for line in lines if line[:2] in said]
    return [*changed, f"`{FIX}` mends docs/map.md"] if changed else []


def test_the_map_is_that_of_the_modules() -> None:
    page = (ROOT / page_of_modules.PAGE).read_text(encoding="utf-8")
    none(compared(page, page_of_modules.modules(ROOT)))


def test_every_module_is_listed() -> None:
    """None is forgotten by what makes the list."""
    listed = page_of_modules.modules(ROOT)
    for module in product():
        folder, _, name = module.path.rpartition("/")
        assert f"](../{folder if name.startswith('__') else module.path})" in listed


def test_the_recipes_name_what_is_there() -> None:
    """Every file and folder in them, but for those that somebody is to make (`NAME`)."""
    page = (ROOT / page_of_modules.PAGE).read_text(encoding="utf-8")
    by_hand = page.replace(page_of_modules.listed(page), "")
    tops = "|".join((*page_of_modules.FOLDERS, "tests", "docs"))
    named = set(re.findall(rf"`((?:{tops})/[\w/.]*)`", by_hand))
    assert len(named) > 15
    none(place for place in sorted(named) if "NAME" not in place and not (ROOT / place).exists())


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two modules, and its page with a list that is out of date."""
    for name in (*page_of_modules.FOLDERS, "docs"):
        (tmp_path / name).mkdir()
    (tmp_path / "export/__init__.py").write_text('"""Files."""\n')
    (tmp_path / "export/open.py").write_text('"""Opens a file.\n\nNot shown."""\n')
    (tmp_path / "export/new.py").write_text('"""Is new."""\n')
    marks = (page_of_modules.FIRST, page_of_modules.LAST)
    old = "\n**[export/](../export)**: Files.\n\n- [open.py](../export/open.py): Opened.\n\n"
    (tmp_path / "docs/map.md").write_text(f"# By hand\n{marks[0]}\n{old}{marks[1]}\nThe end.\n")
    monkeypatch.setattr(page_of_modules, "ROOT", tmp_path)
    return tmp_path


def test_lines_that_are_missing_or_stale_are_named(tree: Path) -> None:
    page = (tree / "docs/map.md").read_text()
    assert compared(page, page_of_modules.modules(tree)) == [
        "missing: - [new.py](../export/new.py): Is new.",
        "stale: - [open.py](../export/open.py): Opened.",
        "missing: - [open.py](../export/open.py): Opens a file.",
        f"`{FIX}` mends docs/map.md",
    ]


def test_the_list_is_written_and_the_rest_stays(tree: Path) -> None:
    page_of_modules.main([])
    page = (tree / "docs/map.md").read_text()
    assert compared(page, page_of_modules.modules(tree)) == []
    assert page.startswith("# By hand\n") and page.endswith("-->\nThe end.\n")
    page_of_modules.main([])
    assert (tree / "docs/map.md").read_text() == page


def test_a_page_without_marks_is_refused(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "docs/map.md").write_text("# By hand\n")
    with pytest.raises(UserError, match="has no lines"):
        page_of_modules.listed("# By hand\n")
    with pytest.raises(SystemExit):
        page_of_modules.main([])
    assert capsys.readouterr().err.startswith("map: docs/map.md has no lines")
