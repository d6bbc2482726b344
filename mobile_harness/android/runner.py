"""Android phones, through adb and ExecuTorch's own `executor_runner` (docs/phones.md).

Legend: N calls of a job. Files lie in a folder of their own below /data/local/tmp while a job runs,
and are deleted after it.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfocus.export.executorch import TARGET
from pocketfocus.export.executorch.write import METHOD, load, methods_of
from pocketfocus.mobile_harness.android import adb
from pocketfocus.mobile_harness.android.adb import Adb
from pocketfocus.mobile_harness.android.etdump import Profile, read_profile
from pocketfocus.mobile_harness.device import STOPPED, Arrays, Call, Device, Job, JobError, Result
from pocketfocus.mobile_harness.options import Absent, Options
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256
from pocketfocus.run.results import Notes
from pocketfocus.run.scratch import temporary_folder

KIND = "android"
REMOTE = "/data/local/tmp"
PID = "runner.pid"  # while it runs
OUTPUTS = "out"  # the beginning of their files' names
SPARE_BYTES = 64 * 2**20  # outputs, ETDump and logs
POLL_S = 5.0  # between looks at the battery while it cools
MACHINES = {62: "x86_64", 183: "arm64-v8a", 40: "armeabi-v7a", 3: "x86"}  # ELF's e_machine


def connect(address: str, options: Options) -> tuple[Device, ...]:
    """Return the phones of `android`, `android:SERIAL,SERIAL` or `android:all`.

    UserError when none is named and there are several; what is not there is an `Absent`.
    """
    reason = adb.missing()
    if reason is not None:
        return (Absent(name_of(address), reason),)
    found = adb.serials()
    if not address or address == "all":
        if not found:
            return (Absent(KIND, "adb sees no phone: plug one in and allow USB debugging"),)
        if not address and len(found) > 1:
            raise UserError(
                f"{len(found)} phones are plugged in ({', '.join(found)}): name one as "
                f"--device android:{next(iter(found))}, or all with --device android:all"
            )
        wanted = list(found)
    else:
        wanted = address.split(",")
    return tuple(phone(serial, found.get(serial), options) for serial in dict.fromkeys(wanted))


def phone(serial: str, state: str | None, options: Options) -> Device:
    """Return the phone in the state that adb gives it."""
    if state == "device":
        return Android(serial, options)
    if state is None:
        return Absent(name_of(serial), "adb does not see it: plug it in")
    known = (why for start, why in adb.STATES.items() if state.startswith(start))
    return Absent(name_of(serial), next(known, f"adb calls it {state}"))


def name_of(address: str) -> str:
    """Return the name in rows."""
    return f"{KIND}:{address}" if address and address != "all" else KIND


@dataclass(frozen=True)
class Battery:
    """What `dumpsys battery` says: level in percent, temperature in degrees Celsius."""

    level: int
    celsius: float


@dataclass(frozen=True)
class Android:
    """One phone that adb can use."""

    serial: str
    options: Options = field(default_factory=Options)

    @property
    def name(self) -> str:
        """Return `android:SERIAL`."""
        return name_of(self.serial)

    @property
    def adb(self) -> Adb:
        """Return what calls it."""
        return Adb(self.serial)

    @cached_property
    def properties(self) -> dict[str, str]:
        """Return the phone's system properties."""
        return dict(re.findall(r"^\[(.+?)\]: \[(.*)\]\s*$", self.adb.shell("getprop"), re.M))

    def describe(self) -> dict[str, str]:
        """Return model, chip, Android's version, ABIs, and the runner by its hash."""
        get = self.properties.get
        runner = self.options.runner
        return {
            "model": f"{get('ro.product.manufacturer', '')} {get('ro.product.model', '')}".strip(),
            "chip": get("ro.soc.model") or get("ro.board.platform", ""),
            "os": f"Android {get('ro.build.version.release', '?')}",
            "abis": get("ro.product.cpu.abilist", ""),
            TARGET.runtime: f"executor_runner {sha256(runner)[:12]}"
            if runner and runner.is_file()
            else "",
        }

    def why_not(self, target: str) -> str | None:
        """Return why not: another target, no runner, or one for another processor."""
        if target != TARGET.name:
            return f"executor_runner executes .pte files, not those of {target}"
        runner = self.options.runner
        if runner is None:
            return "ExecuTorch's executor_runner is needed: name it with --runner PATH"
        if not runner.is_file():
            return f"there is no executor_runner at {runner}"
        abi, abis = abi_of(runner), self.properties.get("ro.product.cpu.abilist", "").split(",")
        if abi in abis:
            return None
        return f"{runner.name} is built for {abi}, the phone runs {', '.join(abis)}: build it anew"

    def run(self, job: Job) -> Result:
        """Push, run and pull. Raises JobError when the phone goes away, fails or stays hot."""
        reason = self.why_not(job.target)
        if reason is not None:
            raise UserError(f"{self.name}: {reason}")
        with (
            temporary_folder("adb") as scratch,
            self._folder(job) as remote,
        ):
            return self._run(job, remote, scratch)

    def battery(self) -> Battery:
        """Return level and temperature now; JobError when the phone does not say."""
        said = self.adb.shell("dumpsys battery")
        fields = dict(re.findall(r"^\s*(level|temperature): (-?\d+)", said, re.M))
        if len(fields) < 2:
            raise JobError(f"{self.name}: dumpsys battery tells no level and temperature")
        return Battery(int(fields["level"]), int(fields["temperature"]) / 10)

    def cool_down(self) -> Battery:
        """Wait until the battery is cooler than `cool_c`; JobError after `cool_wait_s`."""
        deadline = time.monotonic() + self.options.cool_wait_s
        while (now := self.battery()).celsius >= self.options.cool_c:
            if time.monotonic() >= deadline:
                raise JobError(
                    f"{self.name} is at {now.celsius:g} °C after {self.options.cool_wait_s:g} s, "
                    f"a measurement begins below {self.options.cool_c:g} °C: let it cool"
                )
            STOPPED.wait(min(POLL_S, self.options.cool_wait_s))
        return now

    @contextmanager
    def _folder(self, job: Job) -> Iterator[str]:
        """Make a folder on the phone; in the end, if the phone is still there, what runs in it is
        killed and it is deleted."""
        runner = Path(self.options.runner or "")
        needed = Path(job.artifact).stat().st_size + runner.stat().st_size + SPARE_BYTES
        free = free_bytes(self.adb.shell(f"df -k {REMOTE}"))
        if free < needed:
            raise JobError(
                f"{self.name} has {free / 2**20:.0f} MiB free in {REMOTE}, "
                f"{needed / 2**20:.0f} MiB are needed: free some space"
            )
        remote = f"{REMOTE}/pocketfocus-{uuid.uuid4().hex[:8]}"
        self.adb.shell(f"mkdir {remote}")
        try:
            self.adb.push(Path(job.artifact), f"{remote}/model.pte")
            self.adb.push(runner, f"{remote}/executor_runner")
            self.adb.shell(f"chmod 755 {remote}/executor_runner")
            yield remote
        finally:
            with suppress(JobError):
                stop = f"kill -9 $(cat {remote}/{PID} 2>/dev/null) 2>/dev/null"
                Adb(self.serial, tidies=True).shell(f"{stop}; rm -rf {remote}")

    def _run(self, job: Job, remote: str, scratch: Path) -> Result:
        phone = Session(self, job, remote, scratch)
        phone.push_inputs()
        if job.runs == 0 and job.want_outputs:
            return Result(phone.outputs(), 0.0, 0.0, (), phone.peak_mib, job.threads)
        before = self.cool_down()
        trial = phone.profile(2)
        fitting = job.runs
        if job.budget_s is not None:
            fitting = int(min(job.runs, 1000 * job.budget_s / max(trial.times_ms[-1], 1e-3)))
        measured = phone.profile(1 + job.warmup + max(1, fitting))
        after = self.battery()
        return Result(
            outputs=phone.outputs() if job.want_outputs else None,
            load_ms=measured.load_ms,
            first_ms=measured.times_ms[0],
            times_ms=measured.times_ms[1 + job.warmup :],
            peak_rss_mib=phone.peak_mib,
            threads=job.threads,
            notes=Notes(
                battery_percent=(before.level, after.level),
                battery_celsius=(before.celsius, after.celsius),
                operators=measured.operators,
            ),
        )


@dataclass
class Session:
    """A job on a phone whose file and runner lie in the folder `remote` there.

    `peak_mib` is the most that any process of the runner took; 0 when all were too quick to see.
    """

    phone: Android
    job: Job
    remote: str
    scratch: Path
    peak_mib: float = 0.0

    @cached_property
    def method(self) -> str:
        """Return the method that takes inputs of the job's shapes; the usual one says of others
        what it takes."""
        names = methods_of(load(Path(self.job.artifact)))
        return names.get(self.job.inputs[0].shape[1:], METHOD)

    def push_inputs(self) -> None:
        """Push every input of the job's calls once, as raw little-endian float32."""
        for name, (k, row) in {
            input_file(k, row): (k, row) for call in self.job.calls for k, row in enumerate(call)
        }.items():
            self.job.inputs[k][row].astype("<f4").tofile(self.scratch / name)
            self.phone.adb.push(self.scratch / name, f"{self.remote}/{name}")

    def outputs(self) -> Arrays:
        """Make every call once and return each output of the file, [N, *shape]; of the first call
        the one that was made last where the job was measured, see `profile`."""
        shapes = output_shapes(Path(self.job.artifact), self.method)
        made = [np.empty((len(self.job.calls), *shape), np.float32) for shape in shapes]
        for number, call in enumerate(self.job.calls):
            if number > 0 or self.job.runs == 0:
                self.execute(call, 1, output_file=OUTPUTS)
            for k, table in enumerate(made):
                local = self.scratch / "output.bin"
                self.phone.adb.pull(f"{self.remote}/{OUTPUTS}-{k}.bin", local)
                table[number] = read_output(local, table.shape[1:])
        return tuple(made)

    def profile(self, executions: int) -> Profile:
        """Profile so many executions of the first call, the last of which leaves its outputs."""
        files = {"output_file": OUTPUTS} if self.job.want_outputs else {}
        self.execute(self.job.calls[0], executions, etdump_path="profile.etdump", **files)
        self.phone.adb.pull(f"{self.remote}/profile.etdump", self.scratch / "profile.etdump")
        return read_profile(self.scratch / "profile.etdump")

    def execute(self, call: Call, executions: int, **files: str) -> None:
        """Run the runner to its end; JobError when it ends with another code than 0."""
        flags = {
            "model_path": "model.pte",
            "method_name": None if self.method == METHOD else self.method,
            "inputs": ",".join(input_file(k, row) for k, row in enumerate(call)),
            "num_executions": executions,
            "cpu_threads": self.job.threads,
            **files,
        }
        line = " ".join(f"--{key}={value}" for key, value in flags.items() if value is not None)
        said = self.phone.adb.shell(shell_line(self.remote, line), timeout_s=self.job.timeout_s)
        code = re.search(r"^code=(\d+)\n?(.*)", said, re.M | re.S)
        if code is None or code[1] != "0":
            words = code[2].strip().splitlines() if code else []
            why = words[-1] if words else "see adb logcat -s ExecuTorch"
            if "flag 'etdump_path'" in why:  # gflags knows only the flags that were built in
                why += ": build it with EXECUTORCH_ENABLE_EVENT_TRACER=ON (docs/phones.md)"
            if "flag 'method_name'" in why:
                why += ": it calls a file's usual size alone; build a newer one (docs/phones.md)"
            name, number = self.phone.name, code and code[1]
            raise JobError(f"{name}: executor_runner ended with {number}: {why}")
        kib = [int(number) for number in re.findall(r"^VmHWM:\s*(\d+) kB", said, re.M)]
        self.peak_mib = max(self.peak_mib, max(kib, default=0) / 1024)


def shell_line(remote: str, flags: str) -> str:
    """Return what a phone's shell does to run the runner to its end and tell its memory.

    The runner ends with the shell, which is hung up when adb goes; where that one is not told, and
    waits for the runner, the runner's id is in a file.
    """
    # A process that has ended has no VmHWM line any more, which ends the loop.
    return (
        f"cd {remote} && {{ ./executor_runner {flags} >said.txt 2>&1 & p=$!; echo $p >{PID}; "
        "trap 'kill -9 $p' EXIT HUP TERM; "
        "while grep VmHWM /proc/$p/status 2>/dev/null; do sleep 0.05; done; "
        f"wait $p; echo code=$?; trap - EXIT HUP TERM; rm {PID}; tail -n 3 said.txt; }}"
    )


def input_file(k: int, row: int) -> str:
    """Return the file of a row of the k-th table of inputs."""
    return f"input-{k}-{row}.bin"


def output_shapes(path: Path, method: str) -> list[tuple[int, ...]]:
    """Return the shapes of a method's outputs in order, as the runtime on this host reads them."""
    about = load(path).method_meta(method)
    return [tuple(about.output_tensor_meta(k).sizes()) for k in range(about.num_outputs())]


def abi_of(runner: Path) -> str:
    """Return the ABI a program is built for, from its ELF header."""
    with open(runner, "rb") as handle:
        head = handle.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return "no Android (it is no ELF program)"
    machine = int.from_bytes(head[18:20], "little")
    return MACHINES.get(machine, f"ELF machine {machine}")


def free_bytes(said: str) -> int:
    """Read the free space in the last line of `df -k`."""
    fields = said.strip().splitlines()[-1].split()
    try:
        return int(fields[3]) * 1024
    except (IndexError, ValueError):
        raise JobError(f"df -k says '{said.strip()[-80:]}', no free space in it") from None


def read_output(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Read an output that the runner wrote; JobError when it has another number of values."""
    values = np.fromfile(path, "<f4")
    if values.size != math.prod(shape):
        raise JobError(f"the phone wrote {values.size} values, {math.prod(shape)} are due")
    return values.reshape(shape)
