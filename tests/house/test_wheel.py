"""The wheel: every module as a real file, weights and templates, and what it needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.house.source import PACKAGE, STAGES, none, product


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
    places = (module.path.removeprefix(f"{PACKAGE}/") for module in product())
    expected = {f"{PACKAGE}/{place}" for place in places if not place.startswith("research/")}
    assert not any("research" in name for name in wheel.namelist())
    assert inside == expected
    sample = next(p for p in (root / "export").glob("*.py") if p.stat().st_size)
    assert wheel.read(f"{PACKAGE}/export/{sample.name}") == sample.read_bytes()


def test_wheel_holds_weights_and_templates_and_no_junk(root: Path, wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for kind in ("weights", "templates"):
        files = [p for p in (root / PACKAGE).glob(f"**/{kind}/**/*") if p.is_file()]
        files += [p for name in STAGES for p in (root / name).glob(f"**/{kind}/*") if p.is_file()]
        parts = (p.relative_to(root).as_posix().removeprefix(f"{PACKAGE}/") for p in files)
        assert {f"{PACKAGE}/{part}" for part in parts} <= names
    for name in ("student/config.json", "student/diffusion_pytorch_model.safetensors"):
        assert f"{PACKAGE}/weights/{name}" in names
    junk = {n for n in names if re.search(r"\.(pyc|pt|bin|ckpt|pkl)$|__pycache__|^tests/", n)}
    assert not junk
    assert sum(info.file_size for info in wheel.infolist()) < 100 * 2**20


def test_command_is_installed_by_the_wheel(wheel: zipfile.ZipFile) -> None:
    entry = next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "pocketfocus = pocketfocus.cli:main" in wheel.read(entry).decode()


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_every_imported_package_is_a_declared_dependency(root: Path) -> None:
    """One of everybody's, or of an extra; not of the developers' alone."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(t for e in extras if e != "dev" for t in extras[e])]
    declared = {plain(Requirement(text).name) for text in texts}
    owners = metadata.packages_distributions()

    def known(top: str) -> bool:
        if top in sys.stdlib_module_names | {PACKAGE}:
            return True
        if top in owners:
            return bool({plain(name) for name in owners[top]} & declared)
        return any(f"{name}-".startswith(f"{plain(top)}-") for name in declared)  # an absent extra

    none(
        f"{module.path}:{each.line} imports {each.name}"
        for module in product()
        for each in module.imports
        if not known(each.name.split(".")[0])
    )
