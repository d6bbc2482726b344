"""doctor: what it finds is what is there."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from pocketfocus.cli import main
from pocketfocus.export.targets import Target, get_target
from pocketfocus.mobile_harness import doctor


def target(name: str, writes: str | None, runs: str | None) -> Target:
    """A target of that name, and why this machine neither writes nor runs its files."""
    return replace(
        get_target("onnx"), name=name, cannot_write=lambda: writes, cannot_run=lambda: runs
    )


def by_name(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


def test_machine_is_this_one() -> None:
    found = by_name(doctor.machine())
    assert platform.python_version() in found["python"].detail
    assert platform.machine() in found["system"].detail
    assert f"{psutil.virtual_memory().total / 1024**3:.1f} GiB," in found["memory"].detail
    assert doctor.processor()


def test_every_pinned_package_is_named_with_its_version() -> None:
    found = by_name(doctor.packages())
    for name in ("torch", "executorch", "torchao", "coremltools", "diffusers", "onnxruntime"):
        assert found[name].status == "ok"
        assert found[name].detail == metadata.version(name)
    assert "pytest" not in found, "extras are not required"


def test_wrong_and_missing_packages_come_with_a_remedy() -> None:
    found = by_name(doctor.packages(["rich==1.0", "no-such-package>=2", "numpy"]))
    assert found["rich"].status == "wrong"
    assert metadata.version("rich") in found["rich"].detail
    assert "==1.0" in found["rich"].detail
    assert found["no-such-package"].status == "missing"
    assert "pip install 'no-such-package>=2'" in found["no-such-package"].remedy
    assert found["numpy"].status == "ok"


def test_targets_tell_what_they_cannot_do() -> None:
    rows = doctor.conversions([target("a", None, "only on a Mac"), target("b", "no", None)])
    status = {(f.group, f.name): (f.status, f.detail) for f in rows}
    assert status["convert", "a"][0] == "ok"
    assert status["execute", "a"] == ("missing", "only on a Mac")
    assert status["convert", "b"] == ("missing", "no")
    assert status["execute", "b"][0] == "ok"
    assert all(bool(f.remedy) == (f.status != "ok") for f in rows)


def test_what_a_check_executes_is_told_beside_what_this_machine_cannot() -> None:
    """Core ML anywhere but on a Mac."""
    able = replace(target("a", None, "only on a Mac"), fallback="mil-check")
    unable = replace(target("b", "no", "only on a Mac"), fallback="mil-check")
    remedies = {
        f.name: f.remedy for f in doctor.conversions([able, unable]) if f.group == "execute"
    }
    assert "verify checks them here by mil-check; bench" in remedies["a"]
    assert "mil-check" not in remedies["b"]


def test_programs_are_looked_up_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    adb = tmp_path / "adb"
    adb.write_text("#!/bin/sh\n")
    adb.chmod(0o755)
    found = by_name(doctor.programs())
    assert found["adb"].status == "ok"
    assert str(adb) in found["adb"].detail
    assert found["chromium"].status == "missing"
    assert "apt-get install chromium" in found["chromium"].remedy
    assert found["ffmpeg"].status == "ok", "imageio-ffmpeg brings its own"


def test_tables_show_every_finding() -> None:
    findings = doctor.examine([target("a", None, "only on a Mac")])
    console = Console(width=200, record=True, quiet=False, file=None)
    with console.capture() as shown:
        console.print(*doctor.tables(findings), sep="\n")
    for finding in findings:
        assert finding.name in shown.get()
    assert "only on a Mac" in shown.get()


def test_command_writes_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["schema_version"] == 1
    groups = {(row["group"], row["name"]) for row in content["rows"]}
    for name in ("executorch", "coreml", "onnx"):
        assert {("convert", name), ("execute", name)} <= groups
    assert all(
        set(row) == {"group", "name", "status", "detail", "remedy"} for row in content["rows"]
    )


def test_command_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "Can convert to" in shown
    assert "torch" in shown
