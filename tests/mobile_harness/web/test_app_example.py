"""The example for React Native is type-checked against the package that it calls."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

PACKAGE = "react-native-executorch"


def checked(root: Path, project: Path) -> subprocess.CompletedProcess[str]:
    """What TypeScript says of a project."""
    compiler = root / "mobile_harness/web/page/node_modules/.bin/tsc"
    command = [str(compiler), "--noEmit", "-p", str(project)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.usefixtures("built_page")
def test_the_example_fits_the_package(root: Path, tmp_path: Path) -> None:
    found = checked(root, root / "docs/app/tsconfig.json")
    assert found.returncode == 0, found.stdout
    about = json.loads((root / "mobile_harness/web/page/package.json").read_text())
    text = (root / "docs/app/Refocus.ts").read_text(encoding="utf-8")
    assert f"{PACKAGE} {about['devDependencies'][PACKAGE]};" in text

    settings = json.loads((root / "docs/app/tsconfig.json").read_text())
    package = root / "mobile_harness/web/page/node_modules" / PACKAGE
    settings["compilerOptions"]["paths"] = {PACKAGE: [str(package)]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(settings))
    call = "this.model.execute(name, inputs, outputs)"
    assert call in text
    (tmp_path / "Refocus.ts").write_text(text.replace(call, "this.model.execute(name, inputs)"))
    found = checked(root, tmp_path)
    assert found.returncode != 0
    assert "Expected 3 arguments" in found.stdout
