"""What this machine has, can convert and can execute, and what is missing for the rest."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from pocketfocus.export.targets import Target

Status = Literal["ok", "missing", "wrong"]
MARKS: dict[Status, str] = {"ok": "[green]ok[/]", "missing": "[yellow]–[/]", "wrong": "[red]!![/]"}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; `remedy` says how to get what is missing, "" when nothing is."""

    group: str
    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Program:
    """A program outside Python that some command or test uses, under any of its `commands`."""

    name: str
    commands: tuple[str, ...]
    use: str
    remedy: str


PROGRAMS = (
    Program(
        "chromium",
        ("chromium", "chromium-browser", "google-chrome"),
        "looking at the report in a browser (tests)",
        "Debian: apt-get install chromium; macOS: brew install --cask chromium",
    ),
    Program(
        "adb",
        ("adb",),
        "running files on an Android phone",
        "Debian: apt-get install adb; macOS: brew install android-platform-tools",
    ),
    Program(
        "qemu-aarch64-static",
        ("qemu-aarch64-static", "qemu-aarch64"),
        "running files on emulated ARM64",
        "Debian: apt-get install qemu-user-static",
    ),
)

REMEDIES = {
    "convert": "make setup installs the pinned packages",
    "execute": "verify and bench on a machine that can; here their rows say not-run",
}
FALLBACK = "verify checks them here by {}; bench on a machine that can, here its rows say not-run"


def examine(targets: Iterable[Target]) -> list[Finding]:
    """Examine the machine, the packages, each target, and programs outside Python."""
    return [*machine(), *packages(), *conversions(targets), *programs()]


def machine() -> list[Finding]:
    """Find interpreter, operating system, processor and memory."""
    memory = psutil.virtual_memory()
    gib = 1024**3
    facts = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": f"{memory.total / gib:.1f} GiB, {memory.available / gib:.1f} GiB free",
    }
    return [Finding("machine", name, "ok", detail) for name, detail in facts.items()]


def processor() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def packages(requirements: Sequence[str] | None = None) -> list[Finding]:
    """Find each package the project requires (without extras) and whether its version fits."""
    if requirements is None:
        requirements = metadata.requires("pocketfocus") or ()
    wanted = (Requirement(text) for text in requirements)
    return [_package(r) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]


def _package(requirement: Requirement) -> Finding:
    remedy = f"pip install '{requirement.name}{requirement.specifier}', or make setup"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding("package", requirement.name, "missing", "not installed", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        detail = f"{version}, but {requirement.specifier} is required"
        return Finding("package", requirement.name, "wrong", detail, remedy)
    return Finding("package", requirement.name, "ok", version)


def conversions(targets: Iterable[Target]) -> list[Finding]:
    """Find for each target whether this machine can write its files, and execute them."""
    findings = []
    for target in targets:
        for group, reason in (("convert", target.cannot_write()), ("execute", target.cannot_run())):
            if reason is None:
                findings.append(Finding(group, target.name, "ok", f"{target.name} files: yes"))
            else:
                checked = group == "execute" and target.fallback and not target.cannot_write()
                remedy = FALLBACK.format(target.fallback) if checked else REMEDIES[group]
                findings.append(Finding(group, target.name, "missing", reason, remedy))
        loads = target.compatibility({})
        if loads is not None:
            detail = f"must: {loads.must}; may: {loads.may}; cannot: {loads.cannot}"
            findings.append(Finding("load", target.name, "ok", detail))
    return findings


def programs(known: Sequence[Program] = PROGRAMS) -> list[Finding]:
    """Find programs outside Python, and the ffmpeg that imageio brings."""
    findings = [_ffmpeg()]
    for program in known:
        path = next((p for p in map(shutil.which, program.commands) if p), None)
        if path:
            findings.append(Finding("program", program.name, "ok", f"{path}: {program.use}"))
        else:
            detail = f"not found; for {program.use}"
            findings.append(Finding("program", program.name, "missing", detail, program.remedy))
    return findings


def _ffmpeg() -> Finding:
    import imageio_ffmpeg

    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        remedy = "pip install imageio-ffmpeg, or apt-get install ffmpeg"
        return Finding("program", "ffmpeg", "missing", str(error), remedy)
    return Finding("program", "ffmpeg", "ok", f"{Path(path).name}: writing MP4")


TITLES = {
    "machine": "This machine",
    "package": "Packages",
    "convert": "Can convert to",
    "execute": "Can execute",
    "load": "Which runtimes load the files (each file's own are in manifest.json)",
    "program": "Programs",
}


def tables(findings: Sequence[Finding]) -> list[Table]:
    """Return a table for each group, with a column for the remedy where something is missing."""
    made = []
    for group, title in TITLES.items():
        members = [f for f in findings if f.group == group]
        table = Table(title=title, title_justify="left", box=None, show_header=False)
        for _ in range(3 + any(f.remedy for f in members)):
            table.add_column(overflow="fold")
        for finding in members:
            mark = Text.from_markup(MARKS[finding.status])
            remedies = [finding.remedy] if finding.remedy else []
            table.add_row(mark, finding.name, finding.detail, *remedies)
        made.append(table)
    return made
