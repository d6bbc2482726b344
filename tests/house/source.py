"""The product's source as data: its modules, what they import, and the places of names in them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "pocketfocus"
STAGES = ("quantize", "distill", "export", "mobile_harness", "benchmarks")
FOLDERS = (*STAGES, "research")


@dataclass(frozen=True)
class Imported:
    """One imported name: `pocketfocus.run.files.write_atomic`, or a module."""

    name: str
    line: int
    for_types_only: bool


@dataclass(frozen=True)
class Module:
    """A Python file, by its path from the root, such as `export/onnx/write.py`."""

    path: str

    @cached_property
    def text(self) -> str:
        return (ROOT / self.path).read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def name(self) -> str:
        """As it is imported: `pocketfocus.export.onnx.write`, and a package without `__init__`."""
        parts = self.path.removesuffix(".py").removesuffix("/__init__").split("/")
        return ".".join(parts if parts[0] == PACKAGE else [PACKAGE, *parts])

    @cached_property
    def imports(self) -> tuple[Imported, ...]:
        """Everything that it imports, at its top and in its functions."""
        typing = {
            id(inner)
            for block in ast.walk(self.tree)
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
            for statement in block.body
            for inner in ast.walk(statement)
        }
        return tuple(
            Imported(name, node.lineno, id(node) in typing)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in _imported(node)
        )

    @property
    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node

    @cached_property
    def strings(self) -> tuple[ast.Constant, ...]:
        """String constants, docstrings and bare strings below an attribute left out."""
        prose = {id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Expr)}
        return tuple(
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in prose
        )

    def at(self, node: ast.stmt | ast.expr | ast.arg | ast.ExceptHandler) -> str:
        return f"{self.path}:{node.lineno}"


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Full names, a relative one with its dots."""
    of = f"{'.' * node.level}{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
    yield from (f"{of}{alias.name}" for alias in node.names)


@cache
def product() -> tuple[Module, ...]:
    """Every module of the package and of the folders beside it; symbolic links are not followed."""
    found = [path for folder in (PACKAGE, *FOLDERS) for path in (ROOT / folder).rglob("*.py")]
    places = {p.relative_to(ROOT).as_posix() for p in found if "node_modules" not in p.parts}
    linked = tuple(f"{PACKAGE}/{folder}/" for folder in FOLDERS)
    return tuple(Module(place) for place in sorted(places) if not place.startswith(linked))


@cache
def by_name() -> dict[str, Module]:
    return {module.name: module for module in product()}


def imported_module(name: str) -> str | None:
    """The module of the product that an imported name is or stands in; None for other packages."""
    while name and name not in by_name():
        name = name.rpartition(".")[0]
    return name or None


def none(found: Iterable[str]) -> None:
    """Fails with what was found, a line each."""
    lines = list(found)
    assert not lines, "\n".join([f"{len(lines)} found:", *lines])
