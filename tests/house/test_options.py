"""Options that mean the same have the same name in every command, former names still work."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from pocketfocus.cli.app import app

GROUP: Any = typer.main.get_command(app)


def options(command: str, *, hidden: bool) -> set[str]:
    """Names of a command's options that `--help` shows, or that it hides."""
    given = GROUP.commands[command].params
    return {
        name
        for each in given
        if bool(getattr(each, "hidden", False)) == hidden
        for name in each.opts
    }


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("distill", "--teacher-stacks"),
        ("verify", "--positions"),
        ("evaluate", "--positions"),
    ],
)
def test_what_is_shown_is_the_present_name(command: str, name: str) -> None:
    assert name in options(command, hidden=False)


@pytest.mark.parametrize(("command", "name"), [("distill", "--targets"), ("evaluate", "--inputs")])
def test_a_former_name_is_hidden(command: str, name: str) -> None:
    assert name in options(command, hidden=True)
