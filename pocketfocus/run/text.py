"""Text from outside, for people to read: nothing in it moves a cursor or turns lines around."""

from __future__ import annotations

import unicodedata

INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (which turn text around), surrogates
KEPT = "\t\n\u200d"  # the last joins what emoji are made of


def printable(text: str) -> str:
    """Return a text whose control and format characters are written as escapes."""
    return "".join(
        repr(each)[1:-1] if unicodedata.category(each) in INVISIBLE and each not in KEPT else each
        for each in text
    )
