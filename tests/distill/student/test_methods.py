"""The table of methods."""

from __future__ import annotations

import pytest

from pocketfocus.distill.student.methods import get_method
from pocketfocus.run.errors import UserError


def test_an_unknown_method_names_the_known() -> None:
    with pytest.raises(UserError, match="regression"):
        get_method("magic")
