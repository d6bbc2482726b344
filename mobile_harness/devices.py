"""The registry of devices. Adding one is one module with a `device()` function, and one line."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from pocketfocus.benchmarks.device import Device
from pocketfocus.errors import UserError

DEVICES = {
    "host": "pocketfocus.mobile_harness.host",
    "mil-check": "pocketfocus.mobile_harness.mil",
    "arm64": "pocketfocus.mobile_harness.arm64",
}
NOT_TIMED = ("mil-check", "arm64")  # what they take says nothing about a phone
STAND_INS = {"host": ("mil-check",)}  # who verifies the files that a device cannot execute
TWINS = {"arm64": "host"}  # who executes each file too: both must agree
INSTALLERS = {"arm64": "pocketfocus.mobile_harness.arm64_install"}


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


def twin(name: str) -> Device | None:
    """The device whose outputs of the same file a device's own are held against, if any."""
    return get_device(TWINS[name]) if name in TWINS else None


def install(name: str, say: Callable[[str], None]) -> None:
    """Set up a device; UserError names those that can be."""
    if name not in INSTALLERS:
        raise UserError(f"'{name}' has no set-up: choose from {', '.join(INSTALLERS)}")
    import_module(INSTALLERS[name]).install(say)


def stand_ins(name: str) -> tuple[Device, ...]:
    """Who verifies, in order, the files that a device cannot execute."""
    return tuple(map(get_device, STAND_INS.get(name, ())))
