"""The repository itself: layers, layout, wheel, Makefile."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SHIPPED = ("distill", "quantize", "export", "benchmarks", "mobile_harness")
FOLDERS = (*SHIPPED, "research")
INNER = ("cli", "data", "mobile", "models", "photos", "run")
MODELS = {"core", "distill", "quantize", "export"}
MAY_IMPORT = {
    "core": {"core"},
    "cli": {"core", "cli", *SHIPPED},
    "distill": MODELS,
    "quantize": MODELS,
    "export": MODELS,
    "mobile_harness": MODELS | {"mobile_harness"},
    "benchmarks": MODELS | {"benchmarks", "mobile_harness"},
    "research": MODELS | {"benchmarks", "mobile_harness", "research"},
}
TEXT = {".py", ".md", ".toml", ".yaml", ".json", ".jsonl", ".j2", ".html", ".js", ".css", ".txt"}


def modules(root: Path) -> list[Path]:
    """Every Python file of the package, by its place in the repository."""
    found = list((root / "pocketfocus").glob("*.py"))
    for folder in INNER:
        found += (root / "pocketfocus" / folder).glob("*.py")
    for folder in FOLDERS:
        found += (root / folder).rglob("*.py")
    return sorted(p for p in found if "__pycache__" not in p.parts)


def layer(dotted: str) -> str:
    """Layer of a module name such as pocketfocus.export.open."""
    parts = [*dotted.split("."), ""]
    return parts[1] if parts[1] in MAY_IMPORT else "core"


def imported(path: Path) -> Iterator[str]:
    """Names of the pocketfocus modules that a file imports anywhere, lazily too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way(root: Path) -> None:
    wrong = []
    for path in modules(root):
        if path == root / "pocketfocus/__main__.py":
            continue
        place = path.relative_to(root).parts
        own = place[1] if place[:2] == ("pocketfocus", "cli") else place[0]
        allowed = MAY_IMPORT["core" if own == "pocketfocus" else own]
        wrong += [
            f"{path.relative_to(root)} imports {name}"
            for name in imported(path)
            if name.split(".")[0] == "pocketfocus" and layer(name) not in allowed
        ]
    assert not wrong


def test_folders_are_imported_as_parts_of_the_package(root: Path) -> None:
    """`import export` would load a second copy of every module."""
    bare = {*FOLDERS}
    found = [
        f"{path.relative_to(root)} imports {name}"
        for path in [*modules(root), *(root / "tests").rglob("*.py")]
        for name in imported(path)
        if name.split(".")[0] in bare
    ]
    assert not found


def test_no_module_is_longer_than_500_lines(root: Path) -> None:
    files = [*modules(root), *(root / "tests").rglob("*.py")]
    long = {p.name: n for p in files if (n := p.read_text("utf-8").count("\n")) > 500}
    assert not long


def test_no_absolute_path_of_a_machine(root: Path) -> None:
    files = [*modules(root), *(root / "tests").rglob("*.py"), *root.glob("*.*"), root / "Makefile"]
    files += [root / ".ci/run", *(root / "pocketfocus").rglob("*.json*")]
    machine = re.compile("|".join(("/home/" + r"\w", "/root/" + r"\w", "/Users/" + r"\w")))
    found = []
    for path in files:
        if path.suffix in TEXT | {""} and path.is_file():
            text = path.read_text(encoding="utf-8")
            if f"{root}/" in text or machine.search(text):
                found.append(path.name)
    assert not found


def layout(text: str) -> dict[str, str]:
    """Module path -> phrase, of the section Layout of docs/map.md.

    A line names a folder (`export/`) or a module (`export/open.py`, or `open.py` below the folder's
    own line), in backticks, a tree or a table, and the phrase follows.
    """
    section = re.search(r"^## Layout\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, "docs/map.md has a section '## Layout'"
    named, folder = {}, ""
    for line in section[1].splitlines():
        match = re.match(r"[\s|`│├└─*-]*([\w./-]+(?:/|\.py))[`\s|:—–-]*(.*?)[\s|]*$", line)
        if match and match[1].endswith("/"):
            folder = match[1]
        elif match:
            named[match[1] if "/" in match[1] else folder + match[1]] = match[2]
    return named


def test_layout_is_read_from_trees_and_tables() -> None:
    text = "## Layout\n```\nexport/  files\n  open.py   opens any model\n```\n"
    text += "| `pocketfocus/run/files.py` | whole or absent |\n## Next\nx.py nothing\n"
    phrases = {"export/open.py": "opens any model", "pocketfocus/run/files.py": "whole or absent"}
    assert layout(text) == phrases


def test_the_map_names_every_module(root: Path) -> None:
    named = layout((root / "docs/map.md").read_text(encoding="utf-8"))
    there = {p.relative_to(root).as_posix() for p in modules(root) if not p.stem.startswith("__")}
    assert sorted(there - named.keys()) == [], "modules that the map does not name"
    assert sorted(named.keys() - there) == [], "modules that the map names and are not there"
    assert all(len(phrase.split()) >= 2 for phrase in named.values()), "each has its phrase"


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The project's wheel, built offline by the installed backend."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_holds_every_module_as_a_real_file(root: Path, wheel: zipfile.ZipFile) -> None:
    """All but those of research, which are this repository's own."""
    inside = {n for n in wheel.namelist() if n.endswith(".py")}
    places = (p.relative_to(root).as_posix() for p in modules(root))
    expected = {p.removeprefix("pocketfocus/") for p in places if not p.startswith("research/")}
    assert not any("research" in name for name in wheel.namelist())
    assert inside == {f"pocketfocus/{name}" for name in expected}
    sample = next(p for p in (root / "export").glob("*.py") if p.stat().st_size)
    assert wheel.read(f"pocketfocus/export/{sample.name}") == sample.read_bytes()


def test_wheel_holds_weights_and_templates_and_no_junk(root: Path, wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for kind in ("weights", "templates"):
        files = [p for p in (root / "pocketfocus").glob(f"**/{kind}/**/*") if p.is_file()]
        files += [p for name in SHIPPED for p in (root / name).glob(f"**/{kind}/*") if p.is_file()]
        parts = (p.relative_to(root).as_posix().removeprefix("pocketfocus/") for p in files)
        assert {f"pocketfocus/{part}" for part in parts} <= names
    for name in ("student/config.json", "student/diffusion_pytorch_model.safetensors"):
        assert f"pocketfocus/weights/{name}" in names
    junk = {n for n in names if re.search(r"\.(pyc|pt|bin|ckpt|pkl)$|__pycache__|^tests/", n)}
    assert not junk
    assert sum(info.file_size for info in wheel.infolist()) < 100 * 2**20


def test_command_is_installed_by_the_wheel(wheel: zipfile.ZipFile) -> None:
    entry = next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "pocketfocus = pocketfocus.cli:main" in wheel.read(entry).decode()


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-f", str(root / "Makefile"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_make_alone_explains_every_target(root: Path) -> None:
    result = make(root, "-C", str(root))
    assert result.returncode == 0
    for target in ("setup", "demo", "web", "test", "lint", "format", "clean"):
        assert re.search(rf"make {target} +\w+", result.stdout), target


def test_make_says_in_one_line_which_python_it_needs(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    result = make(root, "-C", str(tmp_path), "PYTHON=no-such-python", "setup")
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert "3.11, 3.12 or 3.13" in lines[0]
    assert "no-such-python" in lines[0]
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_linters_and_tests(root: Path) -> None:
    script = root / ".ci/run"
    assert script.stat().st_mode & 0o111, "it can be executed"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert {"set -euo pipefail", "make lint", "make test"} <= set(lines)


def test_every_imported_package_is_a_declared_dependency(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        Requirement(text).name.lower().replace("_", "-") for text in project["dependencies"]
    }
    owners = metadata.packages_distributions()
    undeclared = {
        f"{path.relative_to(root)} imports {top}"
        for path in modules(root)
        for top in {name.split(".")[0] for name in imported(path)}
        if top not in sys.stdlib_module_names | {"pocketfocus"}
        and not {owner.lower().replace("_", "-") for owner in owners.get(top, [])} & declared
    }
    assert not undeclared
