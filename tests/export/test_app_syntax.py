"""The Kotlin and Swift examples, which no compiler sees here, are at least of their languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter_kotlin
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

GRAMMARS = {".kt": tree_sitter_kotlin, ".swift": tree_sitter_swift}
EXAMPLES = (
    "Canary.kt",
    "Canary.swift",
    "Refocus.kt",
    "RefocusCoreML.swift",
    "RefocusExecuTorch.swift",
)


def faults(text: str, suffix: str) -> list[str]:
    """The lines where a text is not of the language of files of this suffix."""
    parser = Parser(Language(GRAMMARS[suffix].language()))
    lines = text.splitlines()

    def wrong(node: Node) -> Iterator[int]:
        if node.is_error or node.is_missing:
            yield node.start_point.row
        for child in node.children:
            yield from wrong(child)

    rows = sorted(set(wrong(parser.parse(text.encode()).root_node)))
    return [f"{row + 1}: {lines[min(row, len(lines) - 1)]}" for row in rows]


def test_all_examples_are_parsed(root: Path) -> None:
    found = {path.name for path in (root / "docs" / "app").iterdir() if path.suffix in GRAMMARS}
    assert found == {*EXAMPLES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_of_its_language(name: str, root: Path) -> None:
    path = root / "docs" / "app" / name
    text = path.read_text(encoding="utf-8")
    assert faults(text, path.suffix) == []
    for sign in "}(":
        head, _, tail = text.rpartition(sign)
        assert faults(head + tail, path.suffix), sign
