"""The registry of devices. Adding one is one module with a `connect()` function, and one line."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import cast

from pocketfocus.mobile_harness.device import Device, facts, runtime_target
from pocketfocus.mobile_harness.options import Options
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import Row

DEVICES = {
    "host": "pocketfocus.mobile_harness.host",
    "mil-check": "pocketfocus.mobile_harness.mil",
    "arm64": "pocketfocus.mobile_harness.arm64",
    "android": "pocketfocus.mobile_harness.android",
    "mac": "pocketfocus.mobile_harness.ios.mac",
    "iphone": "pocketfocus.mobile_harness.ios.iphone",
    "browser": "pocketfocus.mobile_harness.web.visit",
}
EVERY = {"android": "all"}  # how a kind of which there may be several is asked for all
NOT_TIMED = ("mil-check", "arm64")  # what they take says nothing about a phone
STAND_INS = {"host": ("mil-check",)}  # who verifies the files that a device cannot execute
TWINS = {"arm64": "host"}  # who executes each file too: both must agree
VISITORS = ("browser",)  # they come by themselves and send their rows
INSTALLERS = {"arm64": "pocketfocus.mobile_harness.arm64.install"}


def get_devices(name: str, options: Options | None = None) -> tuple[Device, ...]:
    """The devices of `KIND` or `KIND:ADDRESS`; UserError names the known kinds.

    One that is not reachable is among them, with the reason in its `why_not`.
    """
    kind, _, address = name.partition(":")
    if kind not in DEVICES:
        raise UserError(f"unknown device '{name}': choose from {', '.join(DEVICES)}")
    connect = import_module(DEVICES[kind]).connect
    return cast("tuple[Device, ...]", connect(address, options or Options()))


def get_device(name: str, options: Options | None = None) -> Device:
    """The one device of that name; UserError for several."""
    found = get_devices(name, options)
    if len(found) > 1:
        names = ", ".join(device.name for device in found)
        raise UserError(f"{name} is {len(found)} devices, this needs one: name one of {names}")
    return found[0]


def timed_devices(name: str, options: Options | None = None) -> tuple[Device, ...]:
    """Devices whose times are latencies; UserError for the others."""
    if name in NOT_TIMED:
        raise UserError(f"{name} checks files, its times are no latencies: bench on another device")
    return get_devices(name, options)


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


def visited(
    name: str, folder: Path, results: str, options: Options, say: Callable[[str], None]
) -> list[Row]:
    """The rows of the file `results` that a device sent which comes by itself; [] for others."""
    kind, _, address = name.partition(":")
    if kind not in VISITORS:
        return []
    visit = import_module(DEVICES[kind]).visit
    return cast("list[Row]", visit(folder, address, results, options, say))


def on_each(devices: tuple[Device, ...], work: Callable[[Device], list[Row]]) -> list[Row]:
    """The rows of `work` on every device, all at once: phones do not share a processor."""
    if len(devices) == 1:
        return work(devices[0])
    with ThreadPoolExecutor(len(devices)) as pool:
        return [row for rows in pool.map(work, devices) for row in rows]


def list_devices(options: Options | None = None) -> list[Row]:
    """Every kind: rows `{device, reachable, model, chip, os, runtime, why}`."""
    rows: list[Row] = []
    for kind in DEVICES:
        address = EVERY.get(kind)
        for device in get_devices(f"{kind}:{address}" if address else kind, options):
            target = runtime_target(device)
            about, why = facts(device, target), device.why_not(target) or ""
            reachable = bool(about["os"])
            rows.append({"device": device.name, "reachable": reachable, **about, "why": why})
    return rows
