"""What comes from outside goes through the one place that looks at it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.source import Module, none, product

OF_FILES = re.compile(r"(artifact|entry|file|saved|old)\.(name|file|artifact)")


def calls(module: Module, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield node


def test_pictures_are_opened_by_a_list_of_formats() -> None:
    """Any other would start Ghostscript for what is EPS behind `.jpg`."""
    none(
        f"{module.at(call)} Image.open"
        for module in product()
        for call in calls(module, "Image.open")
        if "formats" not in {keyword.arg for keyword in call.keywords}
    )


def test_names_out_of_files_are_resolved_by_one_function() -> None:
    """`folder / artifact.name` may lead anywhere: `pocketfocus.run.paths.below` refuses that."""
    none(
        f"{module.at(node)} {ast.unparse(node)}"
        for module in product()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and OF_FILES.fullmatch(ast.unparse(node.right))
    )


def test_npm_runs_nothing_that_packages_bring(root: Path) -> None:
    """Their scripts would run as they are installed; what versions they are, the lock file says."""
    files = [root / "Makefile", *(root / ".ci").iterdir(), *(root / "docs").rglob("*.md")]
    lines = [
        line for path in files for line in re.split("&&|;|`|\n", path.read_text(encoding="utf-8"))
    ]
    installs = [line for line in lines if re.search(r"npm (ci|i|install)\b", line)]
    assert installs
    none(line for line in installs if "npm ci" not in line or "--ignore-scripts" not in line)


def test_yaml_is_read_in_one_place() -> None:
    found = [module.path for module in product() for _ in calls(module, "yaml.load")]
    assert found == ["quantize/recipes.py"]
    none(
        f"{module.at(call)} {name}"
        for module in product()
        for name in ("yaml.safe_load", "yaml.unsafe_load", "yaml.full_load")
        for call in calls(module, name)
    )
