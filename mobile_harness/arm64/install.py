"""Sets up an emulated ARM64: Debian's arm64 Python and ARM64 wheels in a cache folder.

Everything comes by name through apt-get and pip, with states of their own: the system's package
database is not touched, and nothing needs root.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, size_bytes, write_json
from pocketfocus.run.processes import ended, exit_reason
from pocketfocus.run.scratch import scratch_beside
from pocketfocus.run.swap import put
from pocketfocus.run.telemetry import SWITCHES, cache_home

QEMU = ("qemu-aarch64-static", "qemu-aarch64")
QEMU_REMEDY = "Debian: apt-get install qemu-user-static"
INSTALL = "pocketfocus doctor --install arm64"
SETUP_FILE = "setup.json"
PYTHON = "3.11"
DEBIAN = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libstdc++6",
    "libgcc-s1",
    "zlib1g",
    "libexpat1",
    "libssl3",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libuuid1",
    "libsqlite3-0",
)
# torch 2.10.0 is the last ARM64 build without CUDA; executorch 1.1.0 the one made for it
# (1.4.1 lacks a symbol there: pthreadpool_parallelize_2d_tile_2d_dynamic_with_uarch).
# With the SHA-256 of each: pip takes no other file by that name.
WHEELS = {
    "torch==2.10.0": "3282d9febd1e4e476630a099692b44fdc214ee9bf8ee5377732d9d9dfe5712e4",
    "executorch==1.1.0": "7da105c9f948d22097196cc88bbadb621c9223f5793e003c9e86b926b67d47f6",
    "typing-extensions==4.16.0": "481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8",
    "numpy==2.4.6": "0ab0a9c4ffb1a6d95ef519fe4247dba8eb6b18ad93999f76b7f657039acabd47",
    "onnxruntime==1.32.0": "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
}
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
NEEDLESS = ("torch/include", "torch/test")
CORES = 2
# Without an ARM /proc/cpuinfo, onnxruntime's import ends in a segmentation fault (qemu 7.2).
CORTEX_A76 = """processor\t: {core}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc \
dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""

Say = Callable[[str], None]


def home() -> Path:
    """Return its folder in the cache."""
    return cache_home() / "arm64"


def why_not_ready() -> str | None:
    """Return why nothing runs on emulated ARM64 here, with the way out; None when it does."""
    if platform.system() != "Linux":
        return f"emulating ARM64 needs Linux with qemu, this is {platform.system()}"
    if platform.machine() == "aarch64":
        return "this host is ARM64 itself: use --device host"
    if emulator() is None:
        return f"{QEMU[0]} is missing; {QEMU_REMEDY}"
    if not (home() / SETUP_FILE).is_file():
        return f"emulated ARM64 is not set up: run {INSTALL}"
    if read_json(home() / SETUP_FILE).get("wheels") != [*WHEELS]:
        return f"emulated ARM64 is set up for other versions: run {INSTALL} again"
    return None


def emulator() -> str | None:
    """Return the path of qemu's user-mode emulator; None when it is missing."""
    return next((path for path in map(shutil.which, QEMU) if path), None)


def command(folder: Path, *arguments: str) -> list[str]:
    """Return the command line of the emulated Python of a set-up folder."""
    root = folder / "root"
    return [
        emulator() or QEMU[0],
        "-L",
        str(root),
        str(root / f"usr/bin/python{PYTHON}"),
        *arguments,
    ]


def environment(folder: Path) -> dict[str, str]:
    """Return nothing of the host's: its tuning of x86 libraries would reach ARM64's."""
    own = {"PYTHONPATH": str(folder / "site"), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return {**SWITCHES, **own}


def install(say: Say) -> Path:
    """Download, unpack and try the whole set-up (about 260 MB), and return its folder.

    It appears whole or not at all. Raises UserError where apt, dpkg, pip, qemu or the network is
    missing; each names what to do.
    """
    reason = why_not_ready()
    if reason is None:
        say(f"emulated ARM64 is ready in {home()}")
        return home()
    if INSTALL not in reason:
        raise UserError(reason)
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise UserError(f"{program} is missing: {INSTALL} works on Debian 12")
    start = time.monotonic()
    try:
        home().parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(home()) as scratch:
            made = scratch / home().name
            say("1/3 Debian's arm64 Python: 10 MB after 9 MB of package lists")
            unpack_debian(scratch, made / "root")
            say("2/3 ARM64 wheels of torch, executorch, onnxruntime and numpy: 200 MB")
            unpack_wheels(scratch, made / "site")
            say("3/3 trying them under emulation: about a minute")
            try_imports(made)
            write_json(made / SETUP_FILE, {"wheels": [*WHEELS], "debian": list(DEBIAN)})
            put(made, home())
    except OSError as error:
        raise UserError(f"cannot set up {home()}: {error.strerror or error}") from error
    mib = size_bytes(home()) / 2**20
    say(f"emulated ARM64 is ready in {home()}: {mib:.0f} MiB, {time.monotonic() - start:.0f} s")
    return home()


def unpack_debian(scratch: Path, root: Path) -> None:
    """Unpack Debian's packages into `root`, by an apt with a state of its own."""
    downloads, status = scratch / "debs", scratch / "state/status"
    for folder in (downloads, scratch / "state/lists/partial", scratch / "cache/archives/partial"):
        folder.mkdir(parents=True)
    status.touch()
    root.mkdir(parents=True)
    apt = apt_command(scratch)
    call([*apt, "update"], "no package lists of Debian for arm64 (is the network there?)")
    missing = "this system's apt sources lack arm64 packages of Debian 12, or the network is down"
    call([*apt, "download", *DEBIAN], missing, downloads)
    for package in sorted(downloads.glob("*.deb")):
        call(["dpkg-deb", "-x", str(package), str(root)], f"cannot unpack {package.name}")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("".join(CORTEX_A76.format(core=n) for n in range(CORES)))


def apt_command(scratch: Path) -> list[str]:
    """Return apt-get for arm64, with its lists, cache and status in `scratch`."""
    options = {
        "Dir::State": scratch / "state",
        "Dir::State::status": scratch / "state/status",
        "Dir::Cache": scratch / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
    }
    if os.geteuid() == 0:  # else apt drops to a user that may not write into `scratch`
        options["APT::Sandbox::User"] = "root"
    return ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]


def unpack_wheels(scratch: Path, site: Path) -> None:
    """Unpack the wheels, without their dependencies, into `site`."""
    downloads, wanted = scratch / "wheels", scratch / "wheels.txt"
    wanted.write_text("".join(f"{name} --hash=sha256:{it}\n" for name, it in WHEELS.items()))
    pip = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *(part for name in PLATFORMS for part in ("--platform", name)),
        *("--python-version", PYTHON, "--implementation", "cp", "--dest", str(downloads)),
        *("--require-hashes", "--requirement", str(wanted)),
    ]
    call(pip, "cannot fetch the ARM64 wheels (is the network there?)")
    for wheel in sorted(downloads.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        wheel.unlink()
    for name in NEEDLESS:
        shutil.rmtree(site / name, ignore_errors=True)


def try_imports(folder: Path) -> None:
    """Import both runtimes once, which also compiles them for the next start."""
    program = (
        "import onnxruntime, torch; from executorch.extension.pybindings import _portable_lib as p;"
        "assert 'XnnpackBackend' in p._get_registered_backend_names()"
    )
    what = "the ARM64 runtimes do not start under qemu"
    call(command(folder, "-c", program), what, env=environment(folder))


def call(
    arguments: Sequence[str],
    failure: str,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> None:
    """Run a program to its end; UserError with `failure` and its last words."""
    done = ended(arguments, cwd=cwd, env=env)
    if done.returncode != 0:
        reason = exit_reason(done.returncode, done.stderr)
        raise UserError(f"{failure}: {arguments[0]} {reason}")
