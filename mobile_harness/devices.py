"""The registry of devices. Adding one is one module with a `device()` function, and one line."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from pocketfocus.benchmarks.device import Device
from pocketfocus.errors import UserError

DEVICES = {
    "host": "pocketfocus.mobile_harness.host",
    "mil-check": "pocketfocus.mobile_harness.mil",
}
NOT_TIMED = ("mil-check",)  # what they take says nothing about a phone
STAND_INS = {"host": ("mil-check",)}  # who verifies the files that a device cannot execute


def get_device(name: str) -> Device:
    """The device of that name; UserError names the known ones."""
    if name not in DEVICES:
        raise UserError(f"unknown device '{name}': choose from {', '.join(DEVICES)}")
    return cast(Device, import_module(DEVICES[name]).device())


def timed_device(name: str) -> Device:
    """A device whose times are latencies; UserError for the others."""
    if name in NOT_TIMED:
        raise UserError(f"{name} checks files, its times are no latencies: bench on another device")
    return get_device(name)


def stand_ins(name: str) -> tuple[Device, ...]:
    """Who verifies, in order, the files that a device cannot execute."""
    return tuple(map(get_device, STAND_INS.get(name, ())))
