import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pocketfocus.data.optics import one_hot
from pocketfocus.mobile_harness import host
from pocketfocus.mobile_harness.device import PYTORCH, Job, JobError
from pocketfocus.mobile_harness.devices import DEVICES, get_device, list_devices
from pocketfocus.models.student import load_student
from pocketfocus.run.errors import UserError

SIZE = 64


def photos(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 3, SIZE, SIZE)).astype(np.float32)


def job(artifact: object = "nothing", **fields: object) -> Job:
    tables = (photos()[:, None], np.eye(9, dtype=np.float32)[:, None])
    defaults = {"target": PYTORCH, "inputs": tables, "calls": [(0, 0)]}
    return Job(artifact=str(artifact), **{**defaults, **fields})  # type: ignore[arg-type]


def install_worker(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """Put another function in place of the worker's."""
    path = folder / "substitute.py"
    path.write_text(f"def run_file(*_):\n{textwrap.indent(body, ' ')}\n")
    monkeypatch.setattr(host, "WORKER", f"{path}:run_file")


def test_outputs_are_those_of_the_model_in_the_order_of_the_calls(small_student: Path) -> None:
    calls = [(1, 8), (0, 0), (1, 3)]
    result = host.Host().run(job(small_student, calls=calls, want_outputs=True))
    tensors = [(torch.from_numpy(photos()[i : i + 1]), one_hot(p)) for i, p in calls]
    student = load_student(small_student)
    with torch.inference_mode():
        expected = np.stack([student.stack(*pair).numpy() for pair in tensors])
    assert result.outputs is not None
    (stacks,) = result.outputs
    np.testing.assert_allclose(stacks, expected, atol=1e-5)


def test_measures_as_many_calls_as_asked_with_the_threads_asked(small_student: Path) -> None:
    ballast = np.ones(900 * 2**20, np.uint8)  # this process's memory must not count
    result = host.Host().run(job(small_student, warmup=2, runs=7, threads=1))
    assert ballast[-1] == 1
    assert len(result.times_ms) == 7
    assert result.outputs is None
    assert result.threads == 1
    assert 0 < min(result.times_ms) <= max(result.times_ms) < 5_000
    assert 0 < result.load_ms < 20_000
    assert 0 < result.first_ms < 20_000
    assert 100 < (result.peak_rss_mib or 0) < 900


def test_a_spent_budget_ends_the_runs_but_never_the_first(small_student: Path) -> None:
    result = host.Host().run(job(small_student, runs=1_000_000, budget_s=0.5))
    assert 1 <= len(result.times_ms) < 10_000
    assert result.first_ms not in result.times_ms


def test_a_first_call_as_long_as_the_whole_budget_is_the_timed_one(small_student: Path) -> None:
    result = host.Host().run(job(small_student, warmup=2, runs=1_000_000, budget_s=1e-6))
    assert result.times_ms == (result.first_ms,)
    result = host.Host().run(job(small_student, runs=0, budget_s=1e-6))
    assert result.times_ms == ()


def test_a_missing_model_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model at") as caught:
        host.Host().run(job(tmp_path / "absent"))
    assert not isinstance(caught.value, JobError)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"SIGKILL \(out of memory\?\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise SystemExit('the library is broken')", "code 1: the library is broken"),
        ("import os; os._exit(0)", "left no result"),
        ("raise ValueError('of another shape')", "ValueError: of another shape"),
        ("import time; time.sleep(60)", "did not finish within 1 s"),
    ],
)
def test_a_dead_worker_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, message: str
) -> None:
    install_worker(monkeypatch, tmp_path, body)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with pytest.raises(JobError, match=message) as caught:
        host.Host().run(job("files/a.pte", timeout_s=1 if "sleep" in body else 60))
    assert str(caught.value).startswith("files/a.pte")
    assert "\n" not in str(caught.value)
    assert list(scratch.iterdir()) == []


def test_ctrl_c_kills_the_worker_and_leaves_nothing(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "substitute.py").write_text(
        "import os, signal, time\n"
        "def run_file(*_):\n"
        " signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f" open({str(tmp_path / 'pid')!r}, 'x').write(str(os.getpid()))\n"
        " time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import numpy as np\n"
            "from pocketfocus.mobile_harness import host\n"
            "from pocketfocus.mobile_harness.device import Job\n"
            f"host.WORKER = {str(tmp_path / 'substitute.py:run_file')!r}\n"
            "host.Host().run(Job('a', 'pytorch', (np.zeros((1, 1, 3, 64, 64)),), [(0,)]))",
        ],
        env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((tmp_path / "pid").is_file, 60)
    wait_for(lambda: (tmp_path / "pid").read_text() != "", 5)
    worker = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=30)
    assert errors.strip().endswith("KeyboardInterrupt")
    assert not psutil.pid_exists(worker)
    assert list(scratch.iterdir()) == []


def wait_for(condition: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_registered_device_keeps_the_interface() -> None:
    for name in ("host", "mil-check"):
        device = get_device(name)
        assert device.name == name
        facts = device.describe()
        assert all(facts.values())
        if device.why_not(PYTORCH) is None:
            assert facts["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
        else:
            assert name != "host"


def test_every_kind_of_device_is_listed_with_what_it_is_or_why_it_is_not_there() -> None:
    rows = list_devices()
    assert {str(row.device).partition(":")[0] for row in rows} == set(DEVICES)
    assert all(row.why for row in rows if not row.reachable)
    host = rows[0]
    assert (host.device, host.reachable, host.why) == ("host", True, "")
    assert host.runtime.startswith("executorch ")


@pytest.mark.skipif(sys.platform == "darwin", reason="here they are reachable")
@pytest.mark.parametrize("name", ["mac", "iphone"])
def test_apple_devices_are_absent_elsewhere(name: str) -> None:
    device = get_device(name)
    assert "Core ML predicts on macOS only" in (device.why_not("coreml") or "")
    with pytest.raises(JobError, match="macOS"):
        device.run(job("a.mlpackage", target="coreml"))


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown device 'toaster': choose from host"):
        get_device("toaster")


def test_what_executes_a_file_knows_no_rows_and_no_pydantic() -> None:
    """They would count as memory of the file, whose peak `bench` measures."""
    program = (
        "import sys; import pocketfocus.mobile_harness.worker; "
        "from pocketfocus.export.targets import get_target; "
        "[get_target(name) for name in ('executorch', 'onnx', 'coreml')]; "
        "print([name for name in ('pydantic', 'pocketfocus.run.rows') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_jobs_share_a_process_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until one dies in it; each has its own else."""
    body = """
    import os
    if _[0]["runs"]: os._exit(3)
    zeros = {"first_ms": 0, "peak_rss_mib": 0, "times_ms": []}
    return {"load_ms": os.getpid(), "threads": _[0]["threads"], **zeros}, {}
    """
    install_worker(monkeypatch, tmp_path, textwrap.dedent(body))

    def process() -> float:
        return host.Host().run(job()).load_ms

    assert process() != process()
    with host.one_process():
        first = process()
        assert process() == first
        with pytest.raises(JobError, match="ended with code 3"):
            host.Host().run(job(runs=1))
        assert process() == process() != first
    assert not psutil.pid_exists(int(first))
    with host.one_process(threads=3):
        assert [host.Host().run(job(threads=n)).threads for n in (None, 1)] == [3, 1]
    assert process() != process()
