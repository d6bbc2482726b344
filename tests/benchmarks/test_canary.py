"""The canary: right files pass, and what an app can get wrong does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pocketfocus.benchmarks.canary import make_canary
from pocketfocus.benchmarks.golden import replay, write_golden
from pocketfocus.data.optics import one_hot
from pocketfocus.mobile_harness.device import Job, Result
from pocketfocus.models.student import SHIPPED_WEIGHTS, RefocusStudent, load_student
from pocketfocus.run.errors import UserError
from tests.benchmarks.test_golden import PACKAGE, PTE, Runs

pytestmark = pytest.mark.usefixtures("one_process")

INT4 = "executorch/student-int4.pte"
SMALL = (1, 3, 64, 64)


@pytest.fixture(scope="module")
def bundle(make_run: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the shipped student, at 64 pixels."""
    folder = tmp_path_factory.mktemp("canary")
    for name, repeats in ((PTE, 9), (INT4, 1), (PACKAGE, 99)):
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * repeats)
    make_run(folder / "run", SHIPPED_WEIGHTS, [PTE, INT4, PACKAGE])
    write_golden(folder / "run", folder / "bundle", [Runs(SHIPPED_WEIGHTS)])
    return folder / "bundle"


class Calls:
    """A device on which a file is called, or its output read, in some way."""

    name = "calls"

    def __init__(self, how: Callable[[RefocusStudent, Tensor, Tensor], Tensor]) -> None:
        self.student, self.how = load_student(SHIPPED_WEIGHTS), how

    def describe(self) -> dict[str, str]:
        return {}

    def why_not(self, target: str) -> str | None:
        return None

    def run(self, job: Job) -> Result:
        photos, positions = map(torch.from_numpy, job.inputs)
        with torch.inference_mode():
            made = [self.how(self.student, photos[n], positions[at]) for n, at in job.calls]
        return Result((torch.stack(made).numpy(),), 1.0, 1.0, (), 1.0, 1)


def noisy(student: RefocusStudent, photo: Tensor, position: Tensor) -> Tensor:
    stack = student.stack(photo, position)
    return stack + 0.01 * torch.randn(stack.shape, generator=torch.Generator().manual_seed(0))


WRONG: dict[str, Callable[[RefocusStudent, Tensor, Tensor], Tensor]] = {
    "frames from far to near": lambda s, x, at: s.stack(x, at).flip(0),
    "position from far to near": lambda s, x, at: s.stack(x, at.flip(1)),
    "rows and columns of the output": lambda s, x, at: s.stack(x, at).transpose(2, 3),
    "rows and columns of the photo": lambda s, x, at: s.stack(x.transpose(2, 3), at),
    "channels last in the photo": lambda s, x, at: s.stack(x.movedim(1, 3).reshape(SMALL), at),
    "blue before red": lambda s, x, at: s.stack(x, at).flip(1),
    "a photo in [0, 1]": lambda s, x, at: s.stack(x / 2 + 0.5, at),
    "the photo again": lambda s, x, at: x.expand(9, -1, -1, -1),
    "no numbers": lambda s, x, at: s.stack(x, at) / 0 * 0,
}


def canaries(bundle: Path, how: Callable[[RefocusStudent, Tensor, Tensor], Tensor]) -> list[str]:
    return [row.status for row in replay(bundle, [Calls(how)]) if row.gate == "canary"]


def test_a_right_file_passes(bundle: Path) -> None:
    assert canaries(bundle, noisy) == ["pass"] * 3


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_fails(name: str, bundle: Path) -> None:
    assert canaries(bundle, WRONG[name]) == ["fail"] * 3


def test_files_are_tried_from_the_smallest_on_each_unit(bundle: Path) -> None:
    canary = json.loads((bundle / "golden.json").read_text())["canary"]
    tried = [(each["file"], each["unit"], each["at_least_db"]) for each in canary["tries"]]
    assert tried == [
        (INT4, "default", 35.0),
        (PTE, "default", 35.0),
        (PACKAGE, "all", 35.0),
        (PACKAGE, "cpuAndGPU", 35.0),
        (PACKAGE, "cpuOnly", 35.0),
    ]


def test_what_an_app_takes_along_is_small_and_read_without_a_library(bundle: Path) -> None:
    canary = json.loads((bundle / "golden.json").read_text())["canary"]
    photo, expected = (
        np.fromfile(bundle / saved["file"], "u1").reshape(saved["shape"]) / 127.5 - 1
        for saved in (canary["photo"], canary["expected"])
    )
    assert expected.shape == (9, 3, 64 // canary["step"], 64 // canary["step"])
    with torch.inference_mode():
        stack = load_student(SHIPPED_WEIGHTS).stack(
            torch.from_numpy(photo).float(), one_hot(canary["position"])
        )
    np.testing.assert_allclose(stack[..., ::8, ::8].numpy(), expected, atol=0.005)


@pytest.mark.parametrize(("frames", "warnings"), [(0.0, 0), (0.01, 1)])
def test_a_canary_that_tells_no_order_is_said(
    frames: float, warnings: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames that differ by little, as of a photo without depth; noise differs by much."""
    rng = np.random.default_rng(0)
    stack = rng.uniform(-1, 1, (9, 3, 16, 16)).astype(np.float32)
    if frames:
        stack = stack[:1] + frames * rng.standard_normal(stack.shape).astype(np.float32)
    make_canary(tmp_path, stack[:1], 0, stack, ())
    assert capsys.readouterr().err.count("take another photo") == warnings


def test_a_canary_of_another_photo_is_one_line(bundle: Path) -> None:
    about = json.loads((bundle / "golden.json").read_text())
    text = json.dumps(about | {"canary": about["canary"] | {"position": 4}})
    kept = (bundle / "golden.json").read_bytes()
    (bundle / "golden.json").write_text(text)
    with pytest.raises(UserError, match=r"the canary is of another photo or position.*again$"):
        replay(bundle, [Calls(noisy)])
    (bundle / "golden.json").write_bytes(kept)
