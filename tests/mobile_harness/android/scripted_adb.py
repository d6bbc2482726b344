"""A scripted phone: an executable `adb` that checks every command line as adb 1.0.41 takes it.

Shell commands run in a real `sh`, with /data/local/tmp in a folder of the test, so that quoting,
loops and exit codes are those of a shell. `executor_runner` (`scripted_runner`) runs the .pte
through the host's runtime, accepts only the flags of ExecuTorch's own, and writes its ETDump with
ExecuTorch's own serializer: the wheel's runtime is built without the event tracer.
"""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

REMOTE = "/data/local/tmp"
GETPROP = {
    "ro.product.manufacturer": "Scripted",
    "ro.product.model": "Phone 1",
    "ro.soc.model": "SCRIPT1",
    "ro.build.version.release": "15",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a",
}


def install(folder: Path, phones: dict[str, str] | None = None, **script: object) -> Path:
    """Put `adb` into folder/bin; `script` holds free_kib, temperatures, unplug_after, full (a push
    finds no space), tracer and methods (false: the runner is built without it, or is older), sleeps
    (seconds before the runner does anything) and drift (by which each output of a process is larger
    than the one before)."""
    from tests.mobile_harness.android.scripted_runner import client  # not there when run as `adb`

    (folder / "bin").mkdir(parents=True)
    (folder / "tmp").mkdir()
    settings = {"phones": {"PHONE1": "device"} if phones is None else phones, **script}
    (folder / "script.json").write_text(json.dumps(settings))
    (folder / "runner").write_text(client(script))
    program = folder / "bin" / "adb"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {folder} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder / "bin"


def elf(path: Path, machine: int = 183) -> Path:
    """A file with the header of an ELF program, which the scripted phone runs as its runner."""
    path.write_bytes(b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + bytes(44))
    return path


def main(folder: Path, arguments: list[str]) -> None:
    script = json.loads((folder / "script.json").read_text())
    with open(folder / "calls.txt", "a") as log:
        log.write(json.dumps(arguments) + "\n")
    if arguments == ["devices"]:
        print("List of devices attached")
        for serial, state in script["phones"].items():
            print(f"{serial}\t{state}")
        print()
        return
    assert arguments[0] == "-s", arguments
    serial, command, *rest = arguments[1:]
    count = len((folder / "calls.txt").read_text().splitlines())
    if serial not in script["phones"] or count > script.get("unplug_after", 10_000):
        sys.exit(f"error: device '{serial}' not found")
    local = str(folder / "tmp")
    if command == "push":
        source, target = rest
        if script.get("full") and not target.endswith("model.pte"):
            name = target.rsplit("/", 1)[-1]
            print(f"adb: error: failed to copy '{source}' to '{target}': remote couldn't create "
                  f"file: No space left on device ({name})", file=sys.stderr)  # fmt: skip
            sys.exit(1)
        if target.endswith("/executor_runner"):
            shutil.copy(folder / "runner", target.replace(REMOTE, local))
        else:
            shutil.copy(source, target.replace(REMOTE, local))
        print(f"{source}: 1 file pushed, 0 skipped.")
    elif command == "pull":
        shutil.copy(rest[0].replace(REMOTE, local), rest[1])
    elif command == "shell":
        (line,) = rest
        sys.exit(shell(folder, script, line, local))
    else:
        sys.exit(f"adb: unknown command {command}")


def shell(folder: Path, script: dict[str, object], line: str, local: str) -> int:
    if line == "getprop":
        print("\n".join(f"[{key}]: [{value}]" for key, value in GETPROP.items()))
    elif line == "dumpsys battery":
        seen = folder / "temperatures.txt"
        temperatures = script.get("temperatures", [300])
        assert isinstance(temperatures, list)
        number = len(seen.read_text()) if seen.exists() else 0
        seen.write_text("x" * (number + 1))
        now = temperatures[min(number, len(temperatures) - 1)]
        print(f"Current Battery Service state:\n  level: 80\n  temperature: {now}\n")
    elif line == f"df -k {REMOTE}":
        free = script.get("free_kib", 10_000_000)
        print("Filesystem 1K-blocks Used Available Use% Mounted on")
        print(f"/dev/block/dm-5 20000000 1 {free} 1% /data")
    else:
        return subprocess.run(["sh", "-c", line.replace(REMOTE, local)], check=False).returncode
    return 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
