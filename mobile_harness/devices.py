"""The registry of devices. Adding one is one module with a `connect()` function, and one entry."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import TypeVar, cast

from pocketfocus.export.targets import TARGETS, get_target
from pocketfocus.mobile_harness.device import HOST, MIL_CHECK, PYTORCH, STOPPED, Device
from pocketfocus.mobile_harness.options import Options
from pocketfocus.run.errors import UserError
from pocketfocus.run.results import Origin

T = TypeVar("T")


@dataclass(frozen=True)
class DeviceKind:
    """A kind of device.

    Attributes:
        name: by which users choose it.
        module: has `connect(address, options)`, which gives its devices.
        every: the address that stands for all of them, where there may be several.
        timed: whether the times that it measures are latencies.
        gate_word: how the name of a gate says that a file ran there.
        falls_back: whether files that it cannot execute go to their target's own fallback device.
        reference_device: name of the device that executes each file too: both must agree.
        visits_itself: whether it comes to this host, which serves a run and waits for it.
        sizes: whether files are called with photos of their other sizes too.
        installer: module with `install(say)`, which sets it up; "" where there is nothing to do.
    """

    name: str
    module: str
    every: str = ""
    timed: bool = True
    gate_word: str = "executed"
    falls_back: bool = False
    reference_device: str = ""
    visits_itself: bool = False
    sizes: bool = False
    installer: str = ""


DEVICES = {
    kind.name: kind
    for kind in (
        DeviceKind(HOST, "pocketfocus.mobile_harness.host", falls_back=True, sizes=True),
        DeviceKind(
            MIL_CHECK,
            "pocketfocus.mobile_harness.mil",
            timed=False,
            gate_word="MIL check",
            sizes=True,
        ),
        DeviceKind("coreai-check", "pocketfocus.mobile_harness.coreai", timed=False, sizes=True),
        DeviceKind(
            "arm64",
            "pocketfocus.mobile_harness.arm64.emulator",
            timed=False,
            reference_device=HOST,
            sizes=True,
            installer="pocketfocus.mobile_harness.arm64.install",
        ),
        DeviceKind("android", "pocketfocus.mobile_harness.android", every="all", sizes=True),
        DeviceKind("mac", "pocketfocus.mobile_harness.ios.mac", sizes=True),
        DeviceKind("iphone", "pocketfocus.mobile_harness.ios.iphone", sizes=True),
        DeviceKind("browser", "pocketfocus.mobile_harness.web.visit", visits_itself=True),
    )
}


@dataclass(frozen=True)
class Found:
    """A device, as `pocketfocus devices` lists it; `why` it does not execute its target's files."""

    device: str
    reachable: bool
    model: str
    chip: str
    os: str
    runtime: str
    why: str


def kind_of(name: str) -> DeviceKind:
    """Return the kind of the device `KIND` or `KIND:ADDRESS`; UserError names the known kinds."""
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise UserError(f"unknown device '{kind}': choose from {', '.join(DEVICES)}")
    return DEVICES[kind]


def get_devices(name: str, options: Options | None = None) -> tuple[Device, ...]:
    """Return the devices of `KIND` or `KIND:ADDRESS`; UserError names the known kinds.

    One that is not reachable is among them, with the reason in its `why_not`.
    """
    connect = import_module(kind_of(name).module).connect
    return cast("tuple[Device, ...]", connect(name.partition(":")[2], options or Options()))


def get_device(name: str, options: Options | None = None) -> Device:
    """Return the one device of that name; UserError for several."""
    found = get_devices(name, options)
    if len(found) > 1:
        names = ", ".join(device.name for device in found)
        raise UserError(f"{name} is {len(found)} devices, this needs one: name one of {names}")
    return found[0]


def timed_devices(name: str, options: Options | None = None) -> tuple[Device, ...]:
    """Return devices whose times are latencies; UserError for the others."""
    if not kind_of(name).timed:
        raise UserError(f"{name} checks files, its times are no latencies: bench on another device")
    return get_devices(name, options)


def takes_sizes(device: Device) -> bool:
    """Return whether files are called there with photos of their other sizes."""
    return _known(device.name).sizes


def is_timed(device: Device) -> bool:
    """Return whether a device's times are latencies, as far as its kind is known here."""
    return _known(device.name).timed


def _known(device: str) -> DeviceKind:
    """Return a device's kind; of one that is not in the registry no more than its name is known."""
    name = device.partition(":")[0]
    return DEVICES.get(name, DeviceKind(name, ""))


def reference_device(name: str) -> Device | None:
    """Return the device whose outputs of the same file a device's own are held against, if any."""
    reference = kind_of(name).reference_device
    return get_device(reference) if reference else None


def fallbacks(name: str) -> tuple[Device, ...]:
    """Return who verifies the files that a device cannot execute, in the order of their targets."""
    if not kind_of(name).falls_back:
        return ()
    names = dict.fromkeys(map(fallback_of, TARGETS))
    return tuple(get_device(fallback) for fallback in names if fallback)


def fallback_of(target: str) -> str:
    """Return the device that verifies a target's files in another's place; "" where none does."""
    return get_target(target).fallback if target in TARGETS else ""


def install(name: str, say: Callable[[str], None]) -> None:
    """Set up a device; UserError names those that can be."""
    installers = {kind.name: kind.installer for kind in DEVICES.values() if kind.installer}
    if name not in installers:
        raise UserError(f"'{name}' has no set-up: choose from {', '.join(installers)}")
    import_module(installers[name]).install(say)


def on_each(devices: tuple[Device, ...], work: Callable[[Device], list[T]]) -> list[T]:
    """Return the rows of `work` on every device, all at once: phones do not share a processor.

    Ctrl-C comes here, not into their threads: they are told, and waited for until they have tidied
    up.
    """
    if len(devices) == 1:
        return work(devices[0])
    futures: list[Future[list[T]]] = []
    try:
        with ThreadPoolExecutor(len(devices)) as pool:
            futures += [pool.submit(work, device) for device in devices]
            try:
                return [row for future in futures for row in future.result()]
            except KeyboardInterrupt:
                STOPPED.set()
                raise
    finally:
        if all(future.done() for future in futures):  # no second Ctrl-C ended the wait for them
            STOPPED.clear()


def origin(device: Device | None, target: str) -> Origin:
    """Return where the rows come from of the files of `target` that a device executed."""
    about = device.describe() if device else {}
    runtime = "torch" if target == PYTORCH else get_target(target).runtime
    version = about.get(runtime, "")
    return Origin(
        model=about.get("model", ""),
        chip=about.get("chip", ""),
        os=about.get("os", ""),
        runtime=version if " " in version or not version else f"{runtime} {version}",
    )


def gate_word(device: str) -> str:
    """Return how the name of a gate says that a file ran on a device, of any name."""
    return _known(device).gate_word


def favourite_target(device: Device) -> str:
    """Return the target that a device is there to check, else the first that it executes."""
    checked = [name for name in TARGETS if get_target(name).fallback == device.name]
    able = (name for name in TARGETS if device.why_not(name) is None)
    return next(iter([*checked, *able]), next(iter(TARGETS)))


def list_devices(options: Options | None = None) -> list[Found]:
    """List every device that is there, and of every kind that has none, why."""
    rows: list[Found] = []
    for kind in DEVICES.values():
        for device in get_devices(f"{kind.name}:{kind.every}".rstrip(":"), options):
            target = favourite_target(device)
            about = origin(device, target)
            why = device.why_not(target) or ""
            found = (about.model, about.chip, about.os, about.runtime)
            rows.append(Found(device.name, bool(about.os), *found, why))
    return rows
