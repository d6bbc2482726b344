"""Text from outside, made safe to show."""

from __future__ import annotations

import pytest

from pocketfocus.run.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Léa's 手机 👩‍🚀", "Léa's 手机 👩‍🚀"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff", r"\udcff"),
        ("a\u2028b\x85c\x00", r"a\u2028b\x85c\x00"),
        ("a\tb\nc", "a\tb\nc"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
