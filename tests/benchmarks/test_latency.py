from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfocus.benchmarks import checks, latency
from pocketfocus.benchmarks.latency import Bench
from pocketfocus.benchmarks.noise import FEWEST_ROUNDS
from pocketfocus.benchmarks.samples import are_of, read_times
from pocketfocus.mobile_harness.device import PYTORCH, Job, JobError, Result
from pocketfocus.mobile_harness.options import Absent
from pocketfocus.run.constants import RUNS
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import load_manifest
from pocketfocus.run.results import MEASURED, BenchRow
from pocketfocus.run.rows import read_rows
from tests.benchmarks.rows import bench_row

MakeRun = Callable[..., None]
COLUMNS = [
    "artifact",
    "target",
    "precision",
    "device",
    "sha256",
    "threads",
    "load_ms",
    "first_ms",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "runs",
    "peak_rss_mib",
    "bytes",
    "status",
    "why",
    "model",
    "chip",
    "os",
    "runtime",
]
ONNX = ["onnx/student-fp32.onnx", "onnx/student-int8.onnx"]
CORE_ML = "coreml/student-fp32.mlpackage"


class Scripted:
    """A device that measures nothing and answers with known times, noting every job."""

    name = "scripted"

    def __init__(self, breaks: dict[str, Exception] | None = None) -> None:
        self.jobs: list[Job] = []
        self.times: dict[str, list[float]] = {}
        self.breaks = breaks or {}
        self.random = np.random.default_rng(0)

    def describe(self) -> dict[str, str]:
        return {}

    def why_not(self, target: str) -> str | None:
        return "Core ML needs macOS" if target == "coreml" else None

    def run(self, job: Job) -> Result:
        self.jobs.append(job)
        name = label(job)
        if name in self.breaks:
            raise self.breaks[name]
        slow = 1000.0 if name.startswith("reference") else 10.0
        times = slow * self.random.lognormal(size=job.runs)
        self.times.setdefault(name, []).extend(times)
        visit = len(self.jobs)
        outputs = (np.ones((1, 9, 3, 64, 64), np.float32),) if job.want_outputs else None
        return Result(outputs, 10.0 * visit, 20.0 * visit, tuple(times), 300.0 + visit, 3)


def label(job: Job) -> str:
    if job.target == PYTORCH:
        known = {"reference:default@25/1.5/1": "reference@25"}
        slow = "reference" if job.artifact.startswith("reference") else "student"
        return known.get(job.artifact, slow)
    return "/".join(Path(job.artifact).parts[-2:])


@pytest.fixture
def run_folder(small_student: Path, tmp_path: Path, make_run: MakeRun) -> Path:
    make_run(tmp_path, small_student, [*ONNX, CORE_ML])
    return tmp_path


def test_rows_hold_the_statistics_of_all_rounds(run_folder: Path) -> None:
    device = Scripted()
    rows = latency.bench_run(run_folder, device, Bench(runs=51, warmup=4, threads=3))
    assert read_rows(run_folder / "bench.json", BenchRow) == rows
    hashes = load_manifest(run_folder).hashes
    for row in rows:
        assert row.sha256 == hashes.get(row.artifact)
        assert list(row.as_json()) == [c for c in COLUMNS if c != "sha256" or row.sha256]
    found = {row.artifact: row for row in rows}
    assert list(found) == ["reference", "reference@25", "student", *ONNX, CORE_ML]
    runs = {"reference": 2, "reference@25": 1}
    for name, times in device.times.items():
        assert found[name].runs == len(times) == runs.get(name, 51)
        for percent in (50, 90, 99):
            expected = np.percentile(times, percent)
            assert getattr(found[name], f"p{percent}_ms") == pytest.approx(expected, abs=1e-3)
        visits = [i for i, job in enumerate(device.jobs, start=1) if label(job) == name]
        assert found[name].load_ms == pytest.approx(10 * np.mean(visits))
        assert found[name].first_ms == pytest.approx(20 * np.mean(visits))
        assert found[name].peak_rss_mib == 300 + max(visits)
        assert found[name].threads == 3
    kept = read_times(run_folder)
    for name, times in device.times.items():
        assert [ms for one in kept[name, "scripted"] for ms in one] == times
        assert are_of(kept[name, "scripted"], len(times), found[name].p50_ms or 0.0)
    assert found[ONNX[0]].bytes == (run_folder / ONNX[0]).stat().st_size
    weights = run_folder / "student" / "diffusion_pytorch_model.safetensors"
    assert found["student"].bytes == weights.stat().st_size


def test_few_runs_leave_the_published_sampling_out(run_folder: Path) -> None:
    device = Scripted()
    rows = latency.bench_run(run_folder, device, Bench(runs=39, warmup=0))
    found = {row.artifact: row for row in rows}
    assert {row.artifact for row in rows if row.status == "not-run"} == {"reference@25", CORE_ML}
    assert found["reference@25"].why.endswith("bench --runs 40")
    assert "reference@25" not in map(label, device.jobs) and found["reference"].runs == 2
    assert not latency.unmeasured(rows)
    absent = latency.bench_run(run_folder, Absent("android:TWO", "unplugged"), Bench(None))
    (said,) = latency.unmeasured([*rows, *absent])
    assert said == "student and 3 more on android:TWO: unplugged"


def test_rounds_go_forth_and_back_around_the_reference(run_folder: Path) -> None:
    device = Scripted()
    latency.bench_run(run_folder, device, Bench(reference="some/where", runs=40, warmup=2))
    order = [label(job) for job in device.jobs]
    forth, back = ["student", *ONNX], [*reversed(ONNX), "student"]
    assert order == [*forth, *back[:2], "reference", *back[2:], *forth]
    reference = device.jobs[5]
    assert (reference.artifact, reference.runs) == ("reference:some/where", 2)
    others = [job for job in device.jobs if job is not reference]
    assert [job.runs for job in others] == [14] * 3 + [13] * 6
    assert all((job.warmup, job.threads) == (2, None) for job in others)
    assert {job.budget_s for job in others} == {latency.ROUND_BUDGET_S}
    assert all(job.inputs[0].shape == (1, 1, 3, 64, 64) for job in device.jobs)


def test_few_calls_are_one_round(run_folder: Path) -> None:
    device = Scripted()
    latency.bench_run(run_folder, device, Bench(reference=None, runs=23))
    assert [(label(job), job.runs) for job in device.jobs] == [
        (name, 23) for name in ("student", *ONNX)
    ]


def test_keeps_the_stack_of_the_reference_that_was_timed(run_folder: Path) -> None:
    device = Scripted()
    latency.bench_run(run_folder, device, Bench(runs=2))
    with np.load(run_folder / "reference.npz") as kept:
        assert kept.files == ["photo", "reference"]
        photo = checks.to_bytes(checks.fitted_photos(None, (64, 64))[0])
        np.testing.assert_array_equal(kept["photo"], photo)
        assert (kept["reference"] == np.full((9, 64, 64, 3), 255, np.uint8)).all()
    wanted = [job for job in device.jobs if job.want_outputs]
    assert [label(job) for job in wanted] == ["reference"]
    assert wanted[0].calls == [checks.SHOWN]
    np.testing.assert_array_equal(wanted[0].inputs[0][0], checks.fitted_photos(None, (64, 64))[:1])
    latency.bench_run(run_folder, Scripted(), Bench(reference=None, runs=2))
    assert not (run_folder / "reference.npz").exists()


def test_what_cannot_run_keeps_its_size_and_nothing_else(run_folder: Path) -> None:
    row = latency.bench_run(run_folder, Scripted(), Bench(reference=None))[-1]
    assert row.artifact == CORE_ML
    assert row.bytes == (run_folder / CORE_ML).stat().st_size
    assert all(getattr(row, name) is None for name in MEASURED)


def test_a_crash_costs_one_row_and_is_said(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Scripted({ONNX[0]: JobError("died of SIGKILL"), "reference": JobError("too slow")})
    rows = latency.bench_run(run_folder, device, Bench(runs=4))
    found = {row.artifact: row for row in rows}
    assert found[ONNX[0]].p50_ms is None
    assert found["reference"].p50_ms is None
    assert found[ONNX[1]].runs == found["student"].runs == 4
    assert (found[ONNX[0]].status, found[ONNX[0]].why) == ("failed", "died of SIGKILL")
    assert latency.unmeasured(rows) == ["reference: too slow", f"{ONNX[0]}: died of SIGKILL"]
    assert "died of SIGKILL" in capsys.readouterr().err


def test_a_file_that_dies_of_a_larger_size_is_no_success(run_folder: Path) -> None:
    class Small(Scripted):
        name = "android:ONE"

        def run(self, job: Job) -> Result:
            if job.inputs[0].shape[-2:] != (64, 64) and label(job) == ONNX[0]:
                raise JobError("out of memory")
            return super().run(job)

    manifest = load_manifest(run_folder)
    any_size = [replace(a, multiple=8) for a in manifest.artifacts]
    sizes = ((64, 64), (64, 128))
    replace(manifest, artifacts=any_size, sizes=sizes).save(run_folder)
    rows = latency.bench_run(run_folder, Small(), Bench(runs=2))
    assert read_rows(run_folder / "bench.json", BenchRow) == rows
    found = {row.artifact: row for row in rows}
    (died,), (fine,) = found[ONNX[0]].sizes, found[ONNX[1]].sizes
    assert (died.size, died.p50_ms, died.why) == ((64, 128), None, "out of memory")
    assert (fine.size, fine.why) == ((64, 128), "") and (fine.p50_ms or 0) > 0
    assert found[ONNX[0]].status == "measured"
    assert latency.unmeasured(rows) == [f"{ONNX[0]} at 128x64: out of memory"]


def test_a_reference_that_is_not_there_is_the_users_to_mend(run_folder: Path) -> None:
    device = Scripted({"reference": UserError("no reference at nowhere")})
    with pytest.raises(UserError, match="nowhere"):
        latency.bench_run(run_folder, device, Bench(reference="nowhere"))
    assert not (run_folder / "bench.json").exists()


@pytest.mark.parametrize("bad", [{"runs": 0}, {"warmup": -1}, {"threads": 0}])
def test_senseless_counts_are_refused(run_folder: Path, bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        latency.bench_run(run_folder, Scripted(), Bench(reference=None, **bad))  # type: ignore[arg-type]


def test_a_damaged_file_is_not_measured(run_folder: Path) -> None:
    (run_folder / ONNX[0]).write_bytes(b"something else")
    with pytest.raises(UserError, match="export"):
        latency.bench_run(run_folder, Scripted(), Bench(reference=None))


entries = st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True).map(
    lambda ids: [latency.Entry(str(i), str(i), "onnx", "fp32", i) for i in ids]
)


@given(entries, st.integers(1, 200))
def test_the_rounds_share_out_all_runs(entries: list[latency.Entry], runs: int) -> None:
    plan = latency.schedule(entries, runs, warmup=1)
    for entry in entries:
        shares = [visit.runs for visit in plan if visit.entry == entry]
        assert sum(shares) == runs
        assert max(shares) - min(shares) <= 1
        assert min(shares) > 0
        assert len(shares) == max(1, runs // latency.ROUND_RUNS)


def test_the_usual_calls_are_enough_to_judge() -> None:
    plan = latency.schedule([latency.Entry("a", "a", "onnx", "fp32", 1)], RUNS, warmup=1)
    assert FEWEST_ROUNDS < len(plan) <= 4  # each starts a process, which takes seconds
    assert sum(visit.budget_s for visit in plan) <= 2 * latency.BUDGET_S


def test_ratios_are_speed_ups_on_the_same_device() -> None:
    rows = [
        bench_row(artifact=name, device=device, p50_ms=p50)
        for name, device, p50 in [
            ("reference", "host", 9000.0),
            ("reference@25", "host", 270_000.0),
            ("student", "host", 30.0),
            ("a.pte", "host", 10.0),
            ("b.mlpackage", "host", None),
            ("a.pte", "phone", 5.0),
        ]
    ]
    assert latency.ratios(rows) == [
        latency.Ratio("student", "host", 300.0, 9000.0, 1.0),
        latency.Ratio("a.pte", "host", 900.0, 27_000.0, 3.0),
        latency.Ratio("a.pte", "phone", None, None, None),
    ]
