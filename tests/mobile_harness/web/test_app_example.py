"""The example for React Native is type-checked against the package that it calls, and its canary
is run with a stand-in of that package."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pocketfocus.benchmarks.canary import STEP, Called, Sized, Try, make_canary, sampled
from pocketfocus.benchmarks.saved import save
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
  const sizes = path.includes('at-one-size') ? { forward: 0 } : { forward: 0, turned: 1 };
  const half = stack.length / 2; // of the usual size, then of the other
  const execute = (name, [photo], [made]) => {
    if (photo.held.length * 9 !== half) throw new Error('another size');
    const at = sizes[name] ?? 0;
    made.held.set(stack.subarray(at * half, (at + 1) * half));
  };
  return { path, dispose() {}, execute };
};
"""
APP = """
import { readFileSync } from 'node:fs';
import { firstThatWorks } from './Refocus';
const { canary } = JSON.parse(readFileSync('golden.json', 'utf8'));
const [photo, expected] = [canary.photo, canary.expected].map(({ file }) => readFileSync(file));
const usual = { name: 'forward', size: canary.photo.shape.slice(2) };
const sizes = canary.sizes.map(({ size, photo, expected }) => (
  { size, photo: readFileSync(photo.file), expected: readFileSync(expected.file) }
));
const found = firstThatWorks({ ...canary, photo, expected, sizes }, usual, (file) => file);
console.log(found === null ? 'none' : found.model.path);
"""
FILES = ("absent", "reversed", "nan", "right-at-one-size", "right", "also-right")


@pytest.mark.usefixtures("built_page")
@pytest.mark.parametrize(("count", "chosen"), [(6, "right"), (4, "none")])
def test_the_first_file_that_passes_the_canary_is_kept(
    count: int, chosen: str, root: Path, tmp_path: Path
) -> None:
    modules = root / "mobile_harness/web/page/node_modules"
    rng = np.random.default_rng(0)
    photo, stack = (rng.uniform(-1, 1, (n, 3, 16, 24)).astype("<f4") for n in (1, 9))
    turned = rng.uniform(-1, 1, (9, 3, 24, 16)).astype("<f4")
    stacks = {"reversed": stack[::-1], "nan": stack * np.nan}
    for name in FILES[1:]:  # what it makes of photos of the usual size, and of the other
        values = stacks.get(name, stack)
        (tmp_path / name).write_bytes(values.tobytes() + turned.tobytes())
    others = (Called(name="turned", size=(24, 16)),)
    tries = [Try(file="package", target="coreml", unit="all", at_least_db=35.0)]
    for name in FILES[:count]:
        made = Try(file=name, target="executorch", unit="default", at_least_db=35.0, others=others)
        tries.append(made)
    sized = Sized(
        size=(24, 16),
        photo=save(tmp_path, "turned.u8", photo.transpose(0, 1, 3, 2), "uint8"),
        expected=save(tmp_path, "turned-expected.u8", sampled(turned, STEP), "uint8"),
    )
    canary = make_canary(tmp_path, photo, 0, stack, tries, [sized])
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
