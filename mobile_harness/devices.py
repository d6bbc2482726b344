"""The registry of devices. Adding one is one module with a `device()` function, and one line."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from pocketfocus.benchmarks.device import Device
from pocketfocus.errors import UserError

DEVICES = {
    "host": "pocketfocus.mobile_harness.host",
}


def get_device(name: str) -> Device:
    """The device of that name; UserError names the known ones."""
    if name not in DEVICES:
        raise UserError(f"unknown device '{name}': choose from {', '.join(DEVICES)}")
    return cast(Device, import_module(DEVICES[name]).device())
