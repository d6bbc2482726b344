"""`make` and `.ci/run`, executed with stubs in the place of what they call."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

TARGETS = ("setup", "demo", "web", "check", "test", "lint", "format", "clean")
Ended = subprocess.CompletedProcess[str]


def stub(path: Path, log: Path, code: int = 0) -> None:
    """A program that only notes how it was called."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >> "{log}"\nexit {code}\n')
    path.chmod(0o755)


def called(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def execute(command: Sequence[object], cwd: Path, **environment: str) -> Ended:
    words = [str(word) for word in command]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        words, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
    )


def make(
    root: Path, tmp_path: Path, *arguments: str, codes: Mapping[str, int] | None = None
) -> Ended:
    """The Makefile in a folder of its own, whose environment has stubs alone and is up to date."""
    (tmp_path / "pyproject.toml").touch()
    for name in ("python", "ruff", "mypy", "pocketfocus"):
        stub(tmp_path / ".venv/bin" / name, tmp_path / "log", (codes or {}).get(name, 0))
    (tmp_path / ".venv/.installed").touch()
    return execute(["make", "-f", root / "Makefile", *arguments], tmp_path)


def test_make_alone_explains_every_target(root: Path, tmp_path: Path) -> None:
    result = make(root, tmp_path)
    assert result.returncode == 0 and called(tmp_path / "log") == []
    for target in TARGETS:
        assert re.search(rf"make {target} +\w+", result.stdout), target
    # What make itself says is there, is explained.
    database = execute(["make", "-f", root / "Makefile", "-npq", "help"], tmp_path).stdout
    phony = re.findall(r"^\.PHONY: (.*)$", database, re.MULTILINE)[0].split()
    assert {*phony} == {"help", *TARGETS}


def test_make_says_in_one_line_which_python_it_needs(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    result = execute(["make", "-f", root / "Makefile", "PYTHON=no-such-python", "setup"], tmp_path)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert "3.11, 3.12 or 3.13" in lines[0]
    assert "no-such-python" in lines[0]
    assert not (tmp_path / ".venv").exists()


LINT = ["ruff check .", "ruff format --check .", "mypy "]


def test_lint_is_style_and_types(root: Path, tmp_path: Path) -> None:
    assert make(root, tmp_path, "lint").returncode == 0
    assert called(tmp_path / "log") == LINT


def selected(line: str) -> str:
    """What a call of pytest says after `-m`; "" where it runs everything."""
    words = line.split()
    assert words[:3] == ["python", "-m", "pytest"]
    assert "-k" not in words and "--ignore" not in line and "tests/" not in line
    return line.partition(" -m ")[2].partition(" -m ")[2].partition(" --durations")[0]


def test_test_leaves_nothing_out(root: Path, tmp_path: Path) -> None:
    assert make(root, tmp_path, "test").returncode == 0
    (line,) = called(tmp_path / "log")
    assert selected(line) == ""


def test_check_is_lint_and_the_quick_tests(root: Path, tmp_path: Path) -> None:
    assert make(root, tmp_path, "check").returncode == 0
    *lint, line = called(tmp_path / "log")
    assert lint == LINT
    assert selected(line) == "not exported and not browser and not slow"


@pytest.mark.parametrize(("target", "before"), [("lint", 2), ("check", 2)])
def test_the_first_error_ends_it(root: Path, tmp_path: Path, target: str, before: int) -> None:
    assert make(root, tmp_path, target, codes={"mypy": 1}).returncode != 0
    assert called(tmp_path / "log") == LINT[: before + 1]


def test_demo_builds_into_the_folder_asked_for(root: Path, tmp_path: Path) -> None:
    assert make(root, tmp_path, "demo", "OUT=elsewhere").returncode == 0
    assert called(tmp_path / "log") == [
        "pocketfocus build --out elsewhere --targets executorch,coreml,onnx "
        "--distill-minutes 0.15 --sizes own --runs 20"
    ]


NEEDED = ("chromium", "adb", "npm", "qemu-aarch64")
STEPS = ["make lint", "pocketfocus doctor --install arm64", "make test"]


def continuous(
    root: Path, tmp_path: Path, there: Sequence[str], codes: Mapping[str, int] | None = None
) -> Ended:
    """`.ci/run` in a folder of its own, where only these programs are on the PATH."""
    programs, script = tmp_path / "programs", tmp_path / ".ci/run"
    script.parent.mkdir()
    shutil.copy(root / ".ci/run", script)
    for name in there:
        stub(programs / name, tmp_path / "log", (codes or {}).get(name, 0))
    stub(tmp_path / ".venv/bin/pocketfocus", tmp_path / "log", (codes or {}).get("pocketfocus", 0))
    for name in ("bash", "dirname", "env"):  # what the script itself is made of
        (programs / name).symlink_to(shutil.which(name) or name)
    (programs / "id").write_text("#!/bin/sh\necho 1000\n")
    (programs / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    for name in ("id", "sudo"):
        (programs / name).chmod(0o755)
    return execute([script], tmp_path, PATH=str(programs))


def test_ci_runs_linters_and_tests(root: Path, tmp_path: Path) -> None:
    result = continuous(root, tmp_path, ["make", "apt-get", *NEEDED])
    assert result.returncode == 0, result.stderr
    assert called(tmp_path / "log") == STEPS
    for name in NEEDED:
        assert f"{name}: {tmp_path}/programs/{name}" in result.stdout


@pytest.mark.parametrize("failing", ["lint", "test"])
def test_ci_fails_with_them(root: Path, tmp_path: Path, failing: str) -> None:
    script = f'#!/bin/sh\necho "make $1" >> "{tmp_path}/log"\n[ "$1" != {failing} ]\n'
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs/make").write_text(script)
    (tmp_path / "programs/make").chmod(0o755)
    assert continuous(root, tmp_path, NEEDED).returncode != 0
    assert called(tmp_path / "log") == STEPS[: 3 if failing == "test" else 1]


def test_ci_goes_on_without_emulation(root: Path, tmp_path: Path) -> None:
    result = continuous(root, tmp_path, ["make", *NEEDED], {"pocketfocus": 2})
    assert result.returncode == 0
    assert result.stderr == "no emulated ARM64 here: its test will be skipped\n"
    assert called(tmp_path / "log") == STEPS


def test_ci_installs_what_is_missing(root: Path, tmp_path: Path) -> None:
    result = continuous(
        root, tmp_path, ["make", "apt-get", "chromium-browser", "npm", "qemu-aarch64"]
    )
    assert result.returncode == 0, result.stderr
    update, install, *rest = called(tmp_path / "log")
    assert update.startswith("apt-get update") and install.startswith("apt-get install")
    assert install.split()[-1] == "adb" and "-y" in install.split()
    assert rest == STEPS


def test_ci_says_what_cannot_be_tested(root: Path, tmp_path: Path) -> None:
    result = continuous(root, tmp_path, ["make", "chromium", "npm", "qemu-aarch64"])
    assert result.returncode == 0
    assert result.stderr == "no apt-get and no adb here: its tests will be skipped\n"
    assert called(tmp_path / "log") == STEPS


def test_ci_ends_where_nothing_can_be_installed(root: Path, tmp_path: Path) -> None:
    there = ["make", "apt-get", "chromium", "npm", "qemu-aarch64"]
    assert continuous(root, tmp_path, there, {"apt-get": 100}).returncode == 100
    assert "make lint" not in called(tmp_path / "log")


@pytest.mark.parametrize(
    ("installs", "builds", "expected"),
    [
        (0, 0, "ci run run"),
        (1, 0, "ci ci run run"),
        (2, 0, "ci ci ci run run"),
        (3, 0, "ci ci ci"),
        (0, 1, "ci run ci run run"),
        (0, 3, "ci run ci run ci run"),
    ],
)
def test_npm_may_fail_twice_and_leaves_nothing_half(
    root: Path, tmp_path: Path, installs: int, builds: int, expected: str
) -> None:
    """It fails, or what it says to be well does not build the page, so many times."""
    page, npm = tmp_path / "mobile_harness/web/page", tmp_path / "programs/npm"
    (page / "node_modules/half").mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        (page / name).touch()
    stub(npm, tmp_path / "log")
    script = f"""#!/bin/sh
echo "$1" >> "{tmp_path}/log"
[ "$1" = ci ] || {{ [ "$(grep -c run "{tmp_path}/log")" -gt {builds} ]; exit; }}
[ -e node_modules ] && exit 1
mkdir -p node_modules/half
[ "$(grep -c ci "{tmp_path}/log")" -gt {installs} ]
"""
    npm.write_text(script)
    path = f"{npm.parent}:{os.environ['PATH']}"
    result = execute(["make", "-f", root / "Makefile", "web"], tmp_path, PATH=path)
    assert result.returncode == (0 if expected.endswith("run run") else 2), result.stderr
    assert called(tmp_path / "log") == expected.split()
