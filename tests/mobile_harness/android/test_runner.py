"""Android through adb: a scripted phone that really runs the .pte, and what the real adb says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pocketfocus.benchmarks import latency
from pocketfocus.benchmarks.latency import Bench, bench_run
from pocketfocus.benchmarks.notes import notes_rows
from pocketfocus.benchmarks.repeat import repeated
from pocketfocus.data.optics import one_hot
from pocketfocus.export.executorch.write import open_file
from pocketfocus.mobile_harness.android import adb
from pocketfocus.mobile_harness.android import runner as android
from pocketfocus.mobile_harness.device import STOPPED, Device, Job, JobError
from pocketfocus.mobile_harness.devices import get_device, get_devices, on_each
from pocketfocus.mobile_harness.options import Absent, Options
from pocketfocus.run.constants import RUNS
from pocketfocus.run.errors import UserError
from pocketfocus.run.results import BenchRow
from pocketfocus.run.rows import read_rows
from tests.conftest import Exported
from tests.mobile_harness.android import scripted_adb

SIZE = 64


@pytest.fixture(scope="module")
def pte(exported: Exported) -> Path:
    name = "executorch/student-fp32.pte"
    return exported([name]) / name


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    photo = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return photo, one_hot(3)


def plug_in(monkeypatch: pytest.MonkeyPatch, folder: Path, **script: object) -> Path:
    bin_folder = scripted_adb.install(folder / "phone", **script)  # type: ignore[arg-type]
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "phone"


def job(pte: Path, **fields: object) -> Job:
    tables = (inputs()[0].numpy()[None], np.eye(9, dtype=np.float32)[:, None])
    defaults = {"inputs": tables, "calls": [(0, 3)], "target": "executorch"}
    return Job(artifact=str(pte), **{**defaults, **fields})  # type: ignore[arg-type]


def calls(phone: Path) -> list[list[str]]:
    return [json.loads(line) for line in (phone / "calls.txt").read_text().splitlines()]


def test_a_phone_runs_the_file_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pte: Path
) -> None:
    phone = plug_in(monkeypatch, tmp_path, temperatures=[301, 352])
    runner = scripted_adb.elf(tmp_path / "executor_runner")
    device = get_device("android", Options(runner=runner))
    assert device.name == "android:PHONE1"
    assert device.why_not("executorch") is None
    assert "not those of coreml" in (device.why_not("coreml") or "")
    about = device.describe()
    assert (about["model"], about["chip"], about["os"]) == (
        "Scripted Phone 1",
        "SCRIPT1",
        "Android 15",
    )
    assert about["executorch"].startswith("executor_runner ")
    result = device.run(job(pte, warmup=1, runs=3, threads=1, want_outputs=True))
    assert result.outputs is not None
    for found, expected in zip(result.outputs, open_file(pte)(*inputs()), strict=True):
        np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)
    assert len(result.times_ms) == 3
    assert result.load_ms > 0
    assert result.first_ms > 0
    assert (result.peak_rss_mib or 0) > 10
    assert result.notes is not None
    assert result.notes.battery_percent == (80, 80)
    assert result.notes.battery_celsius == (30.1, 35.2)
    assert result.notes.operators[0].operator == "DELEGATE_CALL"
    assert list((phone / "tmp").iterdir()) == []


def test_a_phone_calls_a_file_again_and_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pte: Path
) -> None:
    plug_in(monkeypatch, tmp_path)
    runner = scripted_adb.elf(tmp_path / "executor_runner")
    device = get_device("android", Options(runner=runner))
    verdict = repeated(device, job(pte), 3)
    assert verdict.status == "pass"
    assert re.fullmatch(r"one result, [0-9a-f]{12}; memory [+-]\d+\.\d MiB", verdict.why)


def test_a_phone_whose_process_gives_other_values_when_it_calls_again_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pte: Path
) -> None:
    """Each first call of a process alone is right."""
    plug_in(monkeypatch, tmp_path, drift=0.01)
    runner = scripted_adb.elf(tmp_path / "executor_runner")
    verdict = repeated(get_device("android", Options(runner=runner)), job(pte), 2)
    assert verdict.status == "fail"
    assert verdict.why.startswith("3 different results, the usual one 2 times")


def programs_of(phone: Path) -> list[psutil.Process]:
    """What runs on a scripted phone, or is about to end there."""
    found = psutil.process_iter(["cmdline"])
    return [each for each in found if f"{phone / 'tmp'}/" in " ".join(each.info["cmdline"] or [])]


def test_a_runner_that_does_not_end_in_time_is_not_left_on_the_phone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pte: Path
) -> None:
    """It once ran on beside the next file."""
    phone = plug_in(monkeypatch, tmp_path, sleeps=600)
    device = get_device("android", Options(runner=scripted_adb.elf(tmp_path / "executor_runner")))
    seen: list[psutil.Process] = []
    real = adb.Adb.shell

    def shell(self: adb.Adb, command: str, timeout_s: float | None = 60.0) -> str:
        if "rm -rf" in command:
            seen.extend(programs_of(phone))
        return real(self, command, timeout_s)

    monkeypatch.setattr(adb.Adb, "shell", shell)
    with pytest.raises(JobError, match="did not end within 5 s"):
        device.run(job(pte, want_outputs=True, timeout_s=5.0))
    assert seen
    assert not psutil.wait_procs(seen, timeout=30)[1]
    assert not list((phone / "tmp").iterdir())


def test_a_runner_ends_with_the_shell_that_is_hung_up(tmp_path: Path) -> None:
    program = tmp_path / "executor_runner"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    line = android.shell_line(str(tmp_path), "--num_executions=1")
    with subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE) as shell:
        deadline = time.monotonic() + 60
        while not (pid := read_if_there(tmp_path / android.PID)) and time.monotonic() < deadline:
            time.sleep(0.05)
        sleeping = psutil.Process(int(pid))
        shell.send_signal(signal.SIGHUP)
        assert not psutil.wait_procs([sleeping], timeout=30)[1]


def read_if_there(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def test_phones_are_left_at_once_where_all_are_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pte: Path
) -> None:
    """Not when each has gone through what was left, and nothing runs on there."""
    phone = plug_in(monkeypatch, tmp_path, phones={"ONE": "device", "TWO": "device"}, sleeps=600)
    options = Options(runner=scripted_adb.elf(tmp_path / "executor_runner"))
    begun, running = list[str](), list[psutil.Process]()

    def work(device: Device) -> list[str]:
        for _ in range(3):  # files, each of which may fail
            begun.append(device.name)
            with suppress(JobError):
                device.run(job(pte, want_outputs=True))
        return []

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while len(running) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
            running[:] = [p for p in programs_of(phone) if "--model_path" in p.cmdline()[-1]]
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        on_each(get_devices("android:all", options), work)
    assert sorted(begun) == ["android:ONE", "android:TWO"]
    assert running and not psutil.wait_procs(running, timeout=30)[1]
    assert not list((phone / "tmp").iterdir())
    assert not STOPPED.is_set()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"unplug_after": 8}, "PHONE1 was unplugged"),
        ({"free_kib": 1000}, "has 1 MiB free .* free some space"),
        ({"full": True}, "phone PHONE1: adb push failed: .*No space left on device"),
        ({"tracer": False}, r"unknown command line flag 'etdump_path': build it with .*TRACER=ON"),
        ({"temperatures": [450]}, "is at 45 °C after 0 s"),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pte: Path,
    script: dict[str, object],
    message: str,
) -> None:
    plug_in(monkeypatch, tmp_path, **script)
    runner = scripted_adb.elf(tmp_path / "executor_runner")
    device = get_device("android", Options(runner=runner, cool_wait_s=0))
    with pytest.raises(JobError, match=message) as caught:
        device.run(job(pte, runs=1))
    assert "\n" not in str(caught.value)


def test_phones_are_measured_at_once_each_with_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exported: Exported
) -> None:
    plug_in(monkeypatch, tmp_path, phones={"ONE": "device", "TWO": "device", "OFF": "offline"})
    monkeypatch.setattr(latency, "ROUND_RUNS", RUNS)
    run = exported(["executorch/student-fp32.pte"])
    runner = scripted_adb.elf(tmp_path / "executor_runner")
    both = threading.Barrier(2, timeout=60)  # neither phone begins before the other is there

    def bench(device: Device) -> list[BenchRow]:
        if isinstance(device, android.Android):
            both.wait()
        return bench_run(run, device, Bench(None, runs=2, warmup=0))

    on_each(get_devices("android:all", Options(runner=runner)), bench)
    rows = read_rows(run / "bench.json", BenchRow)
    status = {(row.artifact.rsplit("/")[-1], row.device): row.status for row in rows}
    assert status == {
        ("student-fp32.pte", "android:ONE"): "measured",
        ("student-fp32.pte", "android:TWO"): "measured",
        ("student-fp32.pte", "android:OFF"): "not-run",
        ("student", "android:ONE"): "not-run",
        ("student", "android:TWO"): "not-run",
        ("student", "android:OFF"): "not-run",
    }
    measured = [row for row in rows if row.status == "measured"]
    for row in measured:
        assert (row.model, row.chip, row.os) == (
            "Scripted Phone 1",
            "SCRIPT1",
            "Android 15",
        )
        assert row.runtime.startswith("executor_runner ")
        assert row.notes and row.notes.battery_celsius == (30.0, 30.0)
    shown = notes_rows(measured)
    assert shown[0].battery == "80 → 80 %, 30 → 30 °C"
    assert shown[0].operators.startswith("DELEGATE_CALL ")


def test_a_runner_for_another_processor_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plug_in(monkeypatch, tmp_path)
    why = get_device("android").why_not("executorch")
    assert why == "ExecuTorch's executor_runner is needed: name it with --runner PATH"
    wrong = scripted_adb.elf(tmp_path / "executor_runner", machine=62)
    why = get_device("android", Options(runner=wrong)).why_not("executorch")
    assert why is not None
    assert "built for x86_64, the phone runs arm64-v8a, armeabi-v7a" in why
    (tmp_path / "executor_runner").write_text("#!/bin/sh")
    why = get_device("android", Options(runner=wrong)).why_not("executorch")
    assert why is not None
    assert "no ELF program" in why


def test_two_phones_have_to_be_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug_in(monkeypatch, tmp_path, phones={"ONE": "device", "TWO": "unauthorized"})
    with pytest.raises(UserError, match=r"2 phones are plugged in .ONE, TWO.*android:all"):
        get_devices("android")
    one, two = get_devices("android:all")
    assert isinstance(one, android.Android)
    assert isinstance(two, Absent)
    assert "allow USB debugging" in two.reason
    (gone,) = get_devices("android:THREE")
    assert gone.name == "android:THREE"
    assert gone.why_not("executorch") == "adb does not see it: plug it in"


@pytest.mark.skipif(shutil.which("adb") is None, reason="Debian's adb package is not installed")
def test_the_real_adb_accepts_our_command_lines(tmp_path: Path) -> None:
    assert all(adb.serials().values())  # no phone, or phones with a state
    for command in (lambda a: a.shell("getprop"), lambda a: a.push(tmp_path, "/data/local/tmp/x")):
        with pytest.raises(JobError, match=r"NOT-A-PHONE was unplugged .*'NOT-A-PHONE' not found"):
            command(adb.Adb("NOT-A-PHONE"))
