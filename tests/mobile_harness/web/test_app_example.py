"""The example for React Native is type-checked against the package that it calls, and its canary
is run with a stand-in of that package."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pocketfocus.benchmarks.canary import Try, make_canary
from pocketfocus.run.files import write_json

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


RUNTIME = """
import { existsSync, readFileSync } from 'node:fs';
export const tensor = (type, shape, data) => {
  const held = data ?? new Float32Array(shape.reduce((a, b) => a * b, 1));
  return { numel: held.length, held, dispose() {}, getData: (into) => (into.set(held), into) };
};
export const loadModel = (path) => {
  if (!existsSync(path)) throw new Error(`no ${path}`);
  const stack = new Float32Array(new Uint8Array(readFileSync(path)).buffer);
  return { path, dispose() {}, execute: (name, [photo], [made]) => made.held.set(stack) };
};
"""
APP = """
import { readFileSync } from 'node:fs';
import { firstThatWorks } from './Refocus';
const { canary } = JSON.parse(readFileSync('golden.json', 'utf8'));
const [photo, expected] = [canary.photo, canary.expected].map(({ file }) => readFileSync(file));
const usual = { name: 'forward', size: canary.photo.shape.slice(2) };
const found = firstThatWorks({ ...canary, photo, expected }, usual, (file) => file);
console.log(found === null ? 'none' : found.model.path);
"""
FILES = ("absent", "reversed", "nan", "right", "also-right")


@pytest.mark.usefixtures("built_page")
@pytest.mark.parametrize(("count", "chosen"), [(5, "right"), (3, "none")])
def test_the_first_file_that_passes_the_canary_is_kept(
    count: int, chosen: str, root: Path, tmp_path: Path
) -> None:
    modules = root / "mobile_harness/web/page/node_modules"
    rng = np.random.default_rng(0)
    photo, stack = (rng.uniform(-1, 1, (n, 3, 16, 24)).astype("<f4") for n in (1, 9))
    stacks = {"reversed": stack[::-1], "nan": stack * np.nan, "right": stack, "also-right": stack}
    for name, values in stacks.items():
        (tmp_path / name).write_bytes(values.tobytes())
    tries = [Try(file="package", target="coreml", unit="all", at_least_db=35.0)]
    for name in FILES[:count]:
        tries.append(Try(file=name, target="executorch", unit="default", at_least_db=35.0))
    canary = make_canary(tmp_path, photo, 0, stack, tries)
    write_json(tmp_path / "golden.json", {"canary": canary.as_json()})
    (tmp_path / "runtime.js").write_text(RUNTIME)
    (tmp_path / "app.js").write_text(APP)
    shutil.copy(root / "docs/app/Refocus.ts", tmp_path)
    bundled = [
        str(modules / ".bin/esbuild"),
        "app.js",
        "--bundle",
        "--platform=node",
        "--outfile=out.cjs",
    ]
    for command in ([*bundled, f"--alias:{PACKAGE}=./runtime.js"], ["node", "out.cjs"]):
        found = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == chosen
