"""What libraries are told before their import: report to nobody, keep files in our cache."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# onnxruntime's wheels report as soon as they are imported, and keep a device id in the user's
# cache; huggingface_hub tells the Hub what uses it.
SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def switch_off() -> None:
    """Set the variables that say so, before any library is imported, unless the user has."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    with suppress(RuntimeError):  # a user without a home
        # Else it makes ~/.config/matplotlib, and writes a list of fonts into ~/.cache/matplotlib.
        os.environ.setdefault("MPLCONFIGDIR", str(cache_home() / "matplotlib"))


def cache_home() -> Path:
    """Return the folder for what can be made again: $XDG_CACHE_HOME/pocketfocus, else
    ~/.cache/pocketfocus (XDG Base Directory: relative values are ignored)."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "pocketfocus"
