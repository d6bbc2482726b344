import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

from pocketfocus.benchmarks import checks, gates, verify
from pocketfocus.benchmarks.gates import failed, unjudged
from pocketfocus.benchmarks.verify import Verification
from pocketfocus.data.optics import one_hot
from pocketfocus.mobile_harness.device import Job, JobError, Result
from pocketfocus.mobile_harness.devices import get_device
from pocketfocus.mobile_harness.options import Absent
from pocketfocus.models.student import (
    Analysis,
    RefocusStudent,
    build_student,
    load_student,
    save_student,
)
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256
from pocketfocus.run.manifest import Artifact, Manifest
from pocketfocus.run.results import VerifyRow
from pocketfocus.run.rows import read_rows

pytestmark = pytest.mark.usefixtures("one_process")

MakeRun = Callable[..., None]
Outputs = tuple[Tensor, ...]
Model = Callable[[Tensor, Tensor], Outputs]
COLUMNS = [
    "artifact",
    "target",
    "precision",
    "device",
    "sha256",
    "gate",
    "psnr_db",
    "threshold_db",
    "status",
    "why",
    "model",
    "chip",
    "os",
    "runtime",
    "photos_sha256",
]


class InProcess:
    """A device that runs Python functions in place of files."""

    name = "in-process"

    def __init__(self, models: Mapping[str, Model | Exception]) -> None:
        self.models = models

    def describe(self) -> dict[str, str]:
        return {}

    def why_not(self, target: str) -> str | None:
        return "Core ML needs macOS" if target == "coreml" else None

    def run(self, job: Job) -> Result:
        model = self.models["/".join(Path(job.artifact).parts[-2:])]
        if isinstance(model, Exception):
            raise model
        photos, positions = map(torch.from_numpy, job.inputs)
        with torch.inference_mode():
            made = [model(photos[i], positions[p]) for i, p in job.calls]
        outputs = tuple(torch.stack(each).numpy() for each in zip(*made, strict=True))
        return Result(outputs, 1.0, 1.0, (), 1.0, 1)


@pytest.fixture(scope="module")
def student(small_student: Path) -> RefocusStudent:
    return load_student(small_student)


def by_artifact(rows: list[VerifyRow]) -> dict[str, VerifyRow]:
    return {row.artifact: row for row in rows}


def changed(
    student: RefocusStudent, change: Callable[[Tensor], Tensor], output: str = "stack"
) -> Model:
    """A student, one of whose outputs is changed."""

    def model(photo: Tensor, position: Tensor) -> Outputs:
        made = student.analyse(photo, position)
        return made._replace(**{output: change(getattr(made, output))})

    return model


def with_noise(student: RefocusStudent, db: float, output: str = "stack") -> Model:
    """A model `db` away from the student, by PSNR with a peak of 2."""
    step = 2.0 / 10 ** (db / 20)
    return changed(student, lambda images: images + step, output)


def test_each_precision_is_held_to_its_own_threshold(
    student: RefocusStudent, small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    models: dict[str, Model] = {
        "onnx/student-fp32.onnx": student,
        "onnx/student-fp16.onnx": with_noise(student, 50.1),
        "onnx/student-int8.onnx": with_noise(student, 39.9),
        "onnx/student-int4.onnx": with_noise(student, 35.1),
    }
    make_run(tmp_path, small_student, [*models, "coreml/student-int8.mlpackage"])
    rows = verify.verify_run(tmp_path, InProcess(models))
    assert read_rows(tmp_path / "verify.json", VerifyRow) == rows
    assert all(list(row.as_json()) in (COLUMNS, COLUMNS[:-1]) for row in rows)
    found = by_artifact(rows)
    assert found["student"].gate == "captured graph"
    assert found["student"].status == "pass"
    assert found["student"].threshold_db == 90.0
    statuses = [found[name].status for name in models]
    assert statuses == ["pass", "pass", "fail", "pass"]
    assert [found[name].threshold_db for name in models] == [80.0, 50.0, 40.0, 35.0]
    assert found["onnx/student-int8.onnx"].psnr_db == pytest.approx(39.9, abs=0.02)
    assert gates.failed(rows) == [found["onnx/student-int8.onnx"]]
    core_ml = found["coreml/student-int8.mlpackage"]
    assert (core_ml.status, core_ml.psnr_db) == ("not-run", None)
    assert core_ml.why == "Core ML needs macOS"


def swapped(student: RefocusStudent) -> Model:
    return changed(student, lambda stack: stack.flip(0))


def deaf_to_position(student: RefocusStudent) -> Model:
    return lambda photo, position: student(photo, one_hot(0))


def wrong_once(student: RefocusStudent) -> Model:
    def model(photo: Tensor, position: Tensor) -> Outputs:
        bad = position.argmax() == 5 and photo.mean() == darkest
        made: Outputs = (wrong if bad else student)(photo, position)
        return made

    darkest = min(p.mean() for p in torch.from_numpy(checks.fitted_photos(None, (64, 64))).split(1))
    wrong = with_noise(student, 20)
    return model


def not_finite(student: RefocusStudent) -> Model:
    return changed(student, lambda stack: stack / 0.0)


def one_frame_short(student: RefocusStudent) -> Model:
    return changed(student, lambda stack: stack[:8])


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (swapped, r"worst output has .* dB, 35 dB are needed"),
        (deaf_to_position, r"worst output has .* dB, 35 dB are needed"),
        (wrong_once, r"worst output has 20\.0 dB, 35 dB are needed"),
        (not_finite, "not finite"),
        (one_frame_short, r"\[18, 8, 3, 64, 64\] and .*, its parent \[18, 9, 3, 64, 64\] and"),
    ],
)
def test_a_wrong_file_fails(
    broken: Callable[[RefocusStudent], Model],
    why: str,
    student: RefocusStudent,
    small_student: Path,
    tmp_path: Path,
    make_run: MakeRun,
) -> None:
    name = "onnx/student-int4.onnx"
    make_run(tmp_path, small_student, [name])
    row = verify.verify_run(tmp_path, InProcess({name: broken(student)}))[-1]
    assert row.status == "fail"
    assert re.search(why, row.why)


@pytest.mark.parametrize(
    ("output", "status"),
    [("sharp", "fail"), ("detail", "fail"), ("dioptres", "pass"), ("positions", "pass")],
)
def test_what_pictures_are_made_of_is_judged(
    output: str,
    status: str,
    student: RefocusStudent,
    small_student: Path,
    tmp_path: Path,
    make_run: MakeRun,
) -> None:
    name = "onnx/student-fp32.onnx"
    make_run(tmp_path, small_student, [name])
    row = verify.verify_run(tmp_path, InProcess({name: with_noise(student, 30, output)}))[-1]
    assert row.status == status
    in_the_picture = 50 if output == "detail" else 30
    assert row.psnr_db == (pytest.approx(in_the_picture, abs=0.02) if status == "fail" else 200)


@pytest.mark.parametrize("error", [JobError("it died of SIGSEGV"), UserError("cannot open it")])
def test_a_file_that_cannot_be_executed_is_no_failed_gate(
    error: Exception, small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    name = "onnx/student-fp32.onnx"
    make_run(tmp_path, small_student, [name])
    row = verify.verify_run(tmp_path, InProcess({name: error}))[-1]
    assert (row.status, row.psnr_db, row.why) == ("error", None, str(error))
    assert unjudged([row]) == [f"{name}, fp32 file, executed: {error}"] and not failed([row])


def test_a_damaged_file_is_reported_and_never_used(
    small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    name = "onnx/student-fp32.onnx"
    make_run(tmp_path, small_student, [name])
    good = sha256(tmp_path / name)
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(UserError, match=rf"{good[:12]}.*export"):
        verify.verify_run(tmp_path, InProcess({}))
    assert not (tmp_path / "verify.json").exists()


def test_files_of_another_student_are_refused(
    small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    make_run(tmp_path, small_student, ["onnx/student-fp32.onnx"])
    save_student(build_student("micro"), tmp_path / "student", half=False)
    with pytest.raises(UserError, match="but the files were made from"):
        verify.verify_run(tmp_path, InProcess({}))


def test_keeps_stacks_of_what_ran(
    student: RefocusStudent, small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    name = "onnx/student-fp32.onnx"
    make_run(tmp_path, small_student, [name, "coreml/student-fp32.mlpackage"])
    verify.verify_run(tmp_path, InProcess({name: student}))
    with np.load(tmp_path / "stacks.npz") as stacks:
        assert sorted(stacks) == [name, "photo", "student"]
        np.testing.assert_array_equal(stacks[name], stacks["student"])
        photo = torch.from_numpy(checks.fitted_photos(None, (64, 64))[:1])
        with torch.inference_mode():
            expected = student.stack(photo, one_hot(4)).permute(0, 2, 3, 1).numpy()
        assert stacks["photo"].shape == (64, 64, 3)
        np.testing.assert_allclose(stacks["student"] / 127.5 - 1, expected, atol=0.51 / 127.5)


def test_fewer_positions_are_told_and_leave_the_shown_stacks(
    student: RefocusStudent, small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    """For devices so slow that nine calls a file are too many."""
    name = "onnx/student-int8.onnx"
    make_run(tmp_path, small_student, [name])
    device = InProcess({name: with_noise(student, 30)})
    rows = verify.verify_run(tmp_path, device, Verification(positions=(2, 8)))
    assert [row.why.endswith("at positions 2, 8 only") for row in rows] == [True, True]
    assert "worst output has" in rows[-1].why and rows[-1].status == "fail"
    assert not (tmp_path / "stacks.npz").exists()
    verify.verify_run(tmp_path, device, Verification(positions=(4,)))
    assert (tmp_path / "stacks.npz").exists()


def test_stacks_of_few_of_many_photos_are_in_memory_at_a_time(
    student: RefocusStudent,
    small_student: Path,
    tmp_path: Path,
    make_run: MakeRun,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Once 191 MB a photo, of any number. A file that is wrong on one of them fails."""
    name, jobs = "onnx/student-int8.onnx", list[int]()
    (tmp_path / "photos").mkdir()
    paths = [tmp_path / "photos" / f"{number}.png" for number in range(26)]
    for number, path in enumerate(paths):
        Image.new("RGB", (16, 16), (number % 256, 255 * (number == 17), 0)).save(path)

    def model(photo: Tensor, position: Tensor) -> Outputs:
        made = student.analyse(photo, position)
        off = photo[0, 1].mean() > 0
        return made._replace(stack=made.stack + 0.5) if off else made

    class Counting(InProcess):
        def run(self, job: Job) -> Result:
            jobs.append(len(job.inputs[0]))
            return super().run(job)

    make_run(tmp_path, small_student, [name])
    how = Verification(photos=paths, positions=(4,))
    rows = verify.verify_run(tmp_path, Counting({name: model}), how)
    assert (sum(jobs), max(jobs)) == (26, verify.TOGETHER)
    assert [(row.artifact, row.status) for row in rows] == [("student", "pass"), (name, "fail")]
    assert rows[1].psnr_db == pytest.approx(12.04, abs=0.5)
    assert rows[1].why.endswith("; worst is 17.png, position 4; at positions 4 only")
    said = capfd.readouterr().err
    assert "photos 1 to 4 of 26\n" in said
    assert "photos 25 to 26 of 26, about 1 minutes left\n" in said


def test_takes_the_users_photos_and_crops_their_centre(tmp_path: Path) -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 50:150] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    squares = checks.fitted_photos([tmp_path / "wide.png"], (64, 64))
    assert squares.shape == (1, 3, 64, 64)
    assert squares.dtype == np.float32
    assert (squares > 0.9).all()  # but for the ringing at the edges, white
    with pytest.raises(UserError, match="no photo"):
        checks.fitted_photos([], (64, 64))


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1.0))
def test_psnr_agrees_with_scikit_image(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a = rng.uniform(-1, 1, (9, 3, 8, 8)).astype(np.float32)
    b = (a + scale * rng.normal(size=a.shape)).astype(np.float32)
    expected = peak_signal_noise_ratio(a, b, data_range=2.0)
    found = gates.output_psnr(a, b)
    assert expected - 0.0101 <= found <= expected + 1e-6  # rounded down: never flattered


def test_equal_stacks_have_a_figure_that_json_can_hold() -> None:
    stack = np.zeros((9, 3, 4, 4), np.float32)
    assert json.loads(json.dumps(gates.output_psnr(stack, stack))) == 200.0
    assert gates.output_psnr(stack, stack + np.float32(1e-20)) == 200.0
    assert math.isfinite(gates.output_psnr(stack, stack + np.float32(1e9)))


class Wired(nn.Module):
    """The student with its inputs or outputs wired wrongly."""

    def __init__(self, student: RefocusStudent, fault: str) -> None:
        super().__init__()
        self.student, self.fault = student, fault

    def forward(self, photo: Tensor, position: Tensor) -> Outputs:
        if self.fault == "mirrored positions":
            position = position.flip(1)
        stack, *others = self.student(photo, position)
        return (stack.flip(0) if self.fault == "mirrored frames" else stack, *others)


@pytest.mark.parametrize("fault", ["none", "mirrored positions", "mirrored frames"])
def test_real_onnx_files_on_the_host(
    fault: str, student: RefocusStudent, small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    name = "onnx/student-fp32.onnx"
    (tmp_path / "onnx").mkdir()
    torch.onnx.export(
        Wired(student, fault).eval(),
        (torch.zeros(1, 3, 64, 64), one_hot(0)),
        tmp_path / name,
        input_names=["photo", "position"],
        output_names=Analysis._fields,
        external_data=False,
    )
    make_run(tmp_path, small_student, [name])
    row = verify.verify_run(tmp_path, get_device("host"))[-1]
    assert row.device == "host"
    assert row.status == ("pass" if fault == "none" else "fail"), row


def test_a_file_must_agree_with_itself_on_the_reference_device(
    student: RefocusStudent, small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    names = ["executorch/student-int8.pte", "onnx/student-int8.onnx", "coreml/student-int8.x"]
    make_run(tmp_path, small_student, names)
    device = InProcess({name: with_noise(student, 60) for name in names})
    host = InProcess({names[0]: with_noise(student, 50), names[1]: with_noise(student, 42)})
    rows = verify.verify_run(tmp_path, device, Verification(reference_device=host))
    same = {r.artifact: r for r in rows if r.gate.startswith(gates.SAME_FILE)}
    assert {name: row.status for name, row in same.items()} == {
        names[0]: "pass",
        names[1]: "fail",
    }
    for name, db in ((names[0], 50), (names[1], 42)):
        apart = 20 * math.log10(1 / (10 ** (-db / 20) - 10 ** (-60 / 20)))
        assert same[name].psnr_db == pytest.approx(apart, abs=0.02)
        assert same[name].threshold_db == gates.SAME_FILE_DB


class Fallback(InProcess):
    name = "fallback"

    def why_not(self, target: str) -> str | None:
        return None


def test_rows_of_a_fallback_stay_where_this_machine_needs_none(
    student: RefocusStudent, small_student: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    """Core ML's files are executed by a fallback on Linux, and by Core ML itself on a Mac."""
    names = ["onnx/student-fp32.onnx", "coreml/student-fp32.mlpackage"]
    make_run(tmp_path, small_student, names)
    models: dict[str, Model] = dict.fromkeys(names, student)
    how = Verification(positions=(4,), fallbacks=(Fallback(models),))
    verify.verify_run(tmp_path, InProcess(models), how)

    class Mac(InProcess):
        def why_not(self, target: str) -> str | None:
            return None

    verify.verify_run(tmp_path, Mac(models), how)
    verify.verify_run(tmp_path, Mac(models), how)
    rows = read_rows(tmp_path / "verify.json", VerifyRow)
    assert sorted((row.artifact, row.device) for row in rows if row.artifact in names) == [
        ("coreml/student-fp32.mlpackage", "fallback"),
        ("coreml/student-fp32.mlpackage", "in-process"),
        ("onnx/student-fp32.onnx", "in-process"),
    ]


class OneNetwork(InProcess):
    """A device that runs one function of one array in place of every file, and notes its jobs."""

    def __init__(self, name: str, network: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__({})
        self.name, self.network = name, network
        self.jobs: list[Job] = []

    def run(self, job: Job) -> Result:
        self.jobs.append(job)
        outputs = np.stack([self.network(job.inputs[0][row]) for (row,) in job.calls])
        return Result((outputs,), 100.4, 20.0, (8.6,) * job.runs, 512.3, 1)


UNET = "executorch/unet-int4.pte"
RANGE = 50.0


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A run of a reference's networks: one file, and what its output is held against."""
    rng = np.random.default_rng(0)
    given = rng.normal(size=(2, 3, 4)).astype(np.float32)
    expected = rng.uniform(0, 1, (2, 5)).astype(np.float32)
    expected[0, 0], expected[1, 1] = 0.0, 1.0
    (tmp_path / "checks").mkdir()
    save_file({"input": given, "expected": RANGE * expected}, tmp_path / "checks/unet.safetensors")
    (tmp_path / UNET).parent.mkdir()
    (tmp_path / UNET).write_bytes(b"a file")
    file = Artifact(UNET, "executorch", "int4", sha256(tmp_path / UNET), 6)
    Manifest((64, 64), [file], reference="some/where").save(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("db", "status"), [(35.1, "pass"), (34.9, "fail")])
def test_a_network_is_held_against_its_saved_check(db: float, status: str, networks: Path) -> None:
    """PSNR's peak is the range of what PyTorch made of the same input."""
    check = load_file(networks / "checks/unet.safetensors")
    off = RANGE / 10 ** (db / 20)

    def network(given: np.ndarray) -> np.ndarray:
        np.testing.assert_array_equal(given, check["input"])
        return check["expected"] + np.float32(off)

    device = OneNetwork("phone", network)
    (row,) = verify.verify_run(networks, device)
    assert read_rows(networks / "verify.json", VerifyRow) == [row]
    assert (row.status, row.threshold_db) == (status, 35.0)
    assert row.psnr_db == pytest.approx(db, abs=0.02)
    assert (row.load_ms, row.run_ms, row.peak_rss_mib) == (120, 9, 512)
    (job,) = device.jobs
    assert (job.calls, job.runs, job.timeout_s) == ([(0,)], 1, None)
    assert not (networks / "stacks.npz").exists()


def test_a_device_without_latencies_calls_a_network_once(networks: Path) -> None:
    device = OneNetwork("mil-check", lambda given: np.zeros((2, 5), np.float32))
    (row,) = verify.verify_run(networks, device)
    assert device.jobs[0].runs == 0
    assert (row.load_ms, row.run_ms) == (100, 20)


def test_an_absent_fallback_and_a_missing_check_are_told(networks: Path) -> None:
    able = OneNetwork("able", lambda given: np.zeros((2, 5), np.float32))
    absent = Absent("absent", "it is not plugged in")
    (row,) = verify.verify_run(networks, absent)
    assert (row.status, row.why) == ("not-run", "it is not plugged in")
    assert "run_ms" not in row.as_json()
    (row,) = verify.verify_run(networks, absent, Verification(fallbacks=(able,)))
    assert (row.device, row.status) == ("able", "fail")
    (networks / "checks/unet.safetensors").unlink()
    with pytest.raises(UserError, match=r"unet\.safetensors is missing: run export --full again"):
        verify.verify_run(networks, able)
