"""Emulated ARM64: its set-up, its worker, and files really executed where it is set up."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pocketfocus.cli.app import main
from pocketfocus.mobile_harness.arm64 import emulator as arm64
from pocketfocus.mobile_harness.arm64 import install as arm64_install
from pocketfocus.mobile_harness.device import Arrays, Job, JobError
from pocketfocus.mobile_harness.devices import get_device, reference_device, timed_devices
from pocketfocus.mobile_harness.options import Options
from pocketfocus.run.errors import UserError

SIZE = 8


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, on a Linux with qemu."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return tmp_path / "pocketfocus/arm64"


@pytest.fixture
def small_onnx(tmp_path: Path) -> Path:
    """Makes nine frames, frame f = photo · (position one-hot)[f]."""
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["position", "column"], ["weights"]),
            helper.make_node("Mul", ["photo", "weights"], ["stack"]),
        ],
        "small",
        [
            helper.make_tensor_value_info("photo", TensorProto.FLOAT, [1, 3, SIZE, SIZE]),
            helper.make_tensor_value_info("position", TensorProto.FLOAT, [1, 9]),
        ],
        [helper.make_tensor_value_info("stack", TensorProto.FLOAT, [9, 3, SIZE, SIZE])],
        [helper.make_tensor("column", TensorProto.INT64, [4], [9, 1, 1, 1])],
    )
    path = tmp_path / "small.onnx"
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def job(artifact: Path, **fields: object) -> Job:
    photos = np.random.default_rng(0).uniform(-1, 1, (2, 3, SIZE, SIZE)).astype(np.float32)
    calls = [(0, 3), (1, 8)]
    tables = (photos[:, None], np.eye(9, dtype=np.float32)[:, None])
    return Job(str(artifact), "onnx", tables, calls, want_outputs=True, **fields)  # type: ignore[arg-type]


def on_host(monkeypatch: pytest.MonkeyPatch, script: Path | None = None) -> arm64.Arm64:
    """The device, with this host's Python in place of the emulated one; or a `script` in place of
    what it executes."""

    def command(folder: Path, *arguments: str) -> list[str]:
        return [sys.executable, *([str(script)] if script else arguments)]

    without_package = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    monkeypatch.setattr(arm64_install, "command", command)
    monkeypatch.setattr(arm64_install, "environment", lambda _: without_package)
    return arm64.connect("", Options())[0]


def check_outputs(outputs: Arrays | None, given: Job) -> None:
    assert outputs is not None
    (stacks,) = outputs
    assert stacks.shape == (2, 9, 3, SIZE, SIZE)
    for stack, (photo, position) in zip(stacks, given.calls, strict=True):
        np.testing.assert_allclose(stack[position], given.inputs[0][photo, 0], atol=1e-6)
        assert np.count_nonzero(stack) == stack[position].size


def test_one_worker_executes_every_file(monkeypatch: pytest.MonkeyPatch, small_onnx: Path) -> None:
    device = on_host(monkeypatch)
    check_outputs(device.run(job(small_onnx)).outputs, job(small_onnx))
    assert device.worker is not None
    first = device.worker.process
    assert first is not None
    check_outputs(device.run(job(small_onnx)).outputs, job(small_onnx))
    assert device.worker.process is first
    device.close()
    assert first.returncode is not None


def test_a_file_that_does_not_load_is_named_and_the_worker_lives_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_onnx: Path
) -> None:
    device = on_host(monkeypatch)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(JobError, match=r"broken\.onnx: InvalidProtobuf"):
        device.run(job(tmp_path / "broken.onnx"))
    check_outputs(device.run(job(small_onnx)).outputs, job(small_onnx))
    device.close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import os; os.abort()", "died of SIGABRT"),
        ("import sys; sys.exit('no module named x')", "ended with code 1: no module named x"),
    ],
)
def test_a_crash_is_told(
    body: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(f"input()\n{body}\n")
    device = on_host(monkeypatch, script)
    with pytest.raises(JobError, match=said):
        device.run(job(tmp_path / "a.onnx"))
    assert device.worker is not None and device.worker.process is None


def test_a_job_that_does_not_end_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text('import time\nprint(\'{"progress": "1"}\', flush=True)\ntime.sleep(60)')
    monkeypatch.setattr(arm64, "SLOWER", 1)
    device = on_host(monkeypatch, script)
    with pytest.raises(JobError, match="did not finish within 1 s"):
        device.run(job(tmp_path / "a.onnx", timeout_s=1.0))
    assert device.worker is not None and device.worker.process is None


def test_the_estimate_counts_the_calls_that_are_left() -> None:
    assert arm64.estimate(job(Path("x/a.onnx")), 2.5) == (
        "a.onnx on emulated ARM64: 1 calls to go, about 2 s"
    )


def test_packages_and_wheels_are_asked_for_by_name(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    listed: dict[str, list[str]] = {}

    def record(arguments: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(list(arguments))
        if "--requirement" in arguments:
            file = arguments[arguments.index("--requirement") + 1]
            listed[file] = Path(file).read_text().splitlines()
        if "-c" in arguments:  # all is unpacked before it is tried
            assert "CPU part\t: 0xd0b" in (Path(arguments[2]) / "proc/cpuinfo").read_text()
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(subprocess, "run", record)
    said: list[str] = []
    assert arm64_install.install(said.append) == cache
    update, download, pip, check = ran
    assert update[-1] == "update"
    assert "-oAPT::Architecture=arm64" in update
    assert any(word.startswith("-oDir::State=") for word in update)
    assert download[-len(arm64_install.DEBIAN) - 1 :] == ["download", *arm64_install.DEBIAN]
    assert pip[1:4] == ["-m", "pip", "download"]
    assert {"--only-binary=:all:", "manylinux2014_aarch64", "--require-hashes"} <= set(pip)
    wanted = listed[pip[pip.index("--requirement") + 1]]
    assert len(wanted) == len(arm64_install.WHEELS)
    assert all(re.fullmatch(r"[\w-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", line) for line in wanted)
    assert check[:2] == ["/usr/bin/qemu-aarch64-static", "-L"]
    assert json.loads((cache / "setup.json").read_text())["wheels"] == [*arm64_install.WHEELS]
    assert get_device("arm64").why_not("onnx") is None
    assert [path.name for path in cache.parent.iterdir()] == ["arm64"]
    arm64_install.install(said.append)
    assert len(ran) == 4
    assert "is ready" in said[-1]


def test_a_failed_download_says_so_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.CompletedProcess([], 100, "", "E: Could not resolve 'deb.debian.org'")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(UserError, match=r"no package lists .* Could not resolve"):
        arm64_install.install(print)
    assert not list(cache.parent.iterdir())


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb", "qemu-aarch64"])
def test_what_is_missing_is_named(
    missing: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shutil,
        "which",
        lambda name: None if name.startswith(missing) else f"/usr/bin/{name}",
    )
    with pytest.raises(UserError, match=f"{missing}.* is missing"):
        arm64_install.install(print)


@pytest.mark.parametrize(
    ("system", "machine", "why"),
    [("Darwin", "arm64", "needs Linux"), ("Linux", "aarch64", "use --device host")],
)
def test_other_hosts_are_told_why_not(
    system: str, machine: str, why: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert why in (get_device("arm64").why_not("executorch") or "")


def test_without_a_set_up_every_row_names_the_command(cache: Path) -> None:
    why = get_device("arm64").why_not("onnx")
    assert why is not None
    assert "pocketfocus doctor --install arm64" in why
    assert "coreml" in (get_device("arm64").why_not("coreml") or "")


def test_without_a_set_up_it_is_listed_as_not_reachable(cache: Path) -> None:
    assert get_device("arm64").describe() == {}


def test_its_times_are_no_latencies_and_its_reference_is_the_host() -> None:
    with pytest.raises(UserError, match="arm64 checks files"):
        timed_devices("arm64")
    host = reference_device("arm64")
    assert host is not None and host.name == "host"
    assert reference_device("host") is None


def test_doctor_refuses_to_install_what_has_no_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--install", "toaster"]) == 2
    assert "'toaster' has no set-up: choose from arm64" in capsys.readouterr().err


@pytest.mark.timeout(300)
def test_emulated_arm64_makes_what_the_host_makes(small_onnx: Path) -> None:
    why = get_device("arm64").why_not("onnx")
    if why is not None:
        pytest.skip(why)
    device = arm64.connect("", Options())[0]
    result = device.run(job(small_onnx))
    device.close()
    check_outputs(result.outputs, job(small_onnx))
