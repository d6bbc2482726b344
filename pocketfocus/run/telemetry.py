"""What keeps libraries from reporting to their makers: environment variables, read at import."""

from __future__ import annotations

import os

# onnxruntime's wheels report as soon as they are imported, and keep a device id in the user's
# cache; huggingface_hub tells the Hub what uses it.
SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def switch_off() -> None:
    """Set them, before any library is imported, unless the user has said otherwise."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
