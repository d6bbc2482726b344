"""What `make check` leaves out is there, and is what takes long."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import ONE_WORKER, SLOW, is_slow, place_among
from tests.house.source import ROOT, Module, none


def test_whatever_is_called_slow_is_there() -> None:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    modules = (Module(path.relative_to(ROOT).as_posix()) for path in files)
    functions = {each.name for module in modules for each in module.functions}
    none(
        f"{name}, in SLOW of tests/conftest.py, is no test"
        for name in sorted(SLOW)
        if name not in functions and not any(path.match(name) for path in files)
    )


@pytest.mark.parametrize(
    ("path", "function", "slow"),
    [
        ("tests/mobile/test_export.py", "test_any", True),
        ("tests/other/test_export.py", "test_any", False),
        ("tests/cli/test_app.py", "test_toolchains_are_imported_without_noise", True),
        ("tests/cli/test_app.py", "test_any", False),
    ],
)
def test_a_test_is_slow_by_its_module_or_its_name(path: str, function: str, slow: bool) -> None:
    assert is_slow(Path(path), function) == slow


def test_what_exports_is_marked(request: pytest.FixtureRequest) -> None:
    """By its fixture, as is what needs a browser; nobody has to remember to."""
    for item in request.session.items:
        marked = {mark.name for mark in item.iter_markers()}
        used = {"exported", "browser"} & set(getattr(item, "fixturenames", ()))
        assert used <= marked, item.nodeid


def test_a_worker_gets_whole_groups(request: pytest.FixtureRequest) -> None:
    """Else each exports everything anew; pytest-xdist does it by names of tests, as `make test`
    asks it to."""
    grouped = request.config.getoption("loadgroup", default=False)
    assert ("@" in request.node.nodeid) == bool(grouped)
    assert not grouped or not request.config.getoption("loadscopereorder")


def test_workers_take_long_groups_first() -> None:
    """Else the others wait for the one that has the last of them; a group stays together."""

    def item(group: str, *marks: str) -> Any:
        found = {"xdist_group": pytest.mark.xdist_group(group).mark, **dict.fromkeys(marks, True)}
        return SimpleNamespace(get_closest_marker=found.get)

    items = [item("quick"), item("long"), item(ONE_WORKER), item("long", "slow")]
    assert sorted(items, key=place_among(items)) == [items[place] for place in (2, 1, 3, 0)]
