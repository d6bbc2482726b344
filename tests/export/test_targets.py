"""Targets whose packages are an extra: part of "all" where it is installed, else by name only."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from pocketfocus.cli import arguments, main
from pocketfocus.export import coreai
from pocketfocus.export.quiet import missing
from pocketfocus.export.targets import TARGETS, get_target, left_out
from pocketfocus.mobile_harness.devices import DEVICES, fallbacks, get_device
from pocketfocus.mobile_harness.host import version_of

WHY = "No module named 'nothing_of_that_name'; pip install 'pocketfocus[coreai]' installs it"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optional target as it is where its extra is not installed."""

    def absent() -> str | None:
        return missing("nothing_of_that_name", extra="coreai")

    monkeypatch.setattr(
        coreai, "TARGET", replace(coreai.TARGET, cannot_write=absent, cannot_run=absent)
    )


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="dev goes without there"
)
def test_developers_have_every_extra() -> None:
    """So that no test of a target is skipped unseen."""
    assert left_out() == {}, "make setup installs what is missing"


@pytest.mark.usefixtures("without")
def test_all_goes_without_it_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    others = tuple(name for name in TARGETS if not get_target(name).extra)
    assert arguments.target_names("all") == others
    assert capsys.readouterr().err.splitlines() == [f"no coreai files: {WHY}"]
    assert arguments.target_names("coreai,onnx") == ("coreai", "onnx")
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("without")
def test_by_name_it_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["export", "--targets", "coreai", "--out", str(tmp_path / "out")])
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"coreai files cannot be written here: {WHY}")


def test_fallback_devices_are_known_and_untimed() -> None:
    names = [device.name for device in fallbacks("host")]
    assert names == ["mil-check", "coreai-check"]
    assert not any(DEVICES[name].timed for name in names)
    assert get_device("coreai-check").why_not("onnx") is None
    assert version_of("nothing-of-that-name") == ""
