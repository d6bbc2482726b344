"""Opening models by name: students and files alike, and one line for everything else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from onnx import ValueInfoProto
from torch import Tensor

from pocketfocus.cli import arguments
from pocketfocus.distill.reference.phases import save_reference
from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.export import open as opening
from pocketfocus.export.open import open_any, open_model
from pocketfocus.models import loading
from pocketfocus.models.places import STUDENTS
from pocketfocus.models.sampling import Sampling
from pocketfocus.run.errors import UserError
from pocketfocus.run.processes import Worker
from tests.conftest import Exported


def test_a_student_folder(small_student: Path, pairs: list[tuple[Tensor, int]]) -> None:
    model = open_model(str(small_student))
    assert model.size is None
    photo, position = pairs[0]
    assert model(photo, position).shape == (9, 3, 64, 64)
    assert model(torch.zeros(1, 3, 128, 64), 3).shape == (9, 3, 128, 64)


def test_the_reference_gets_its_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Fake:
        sampling, relative = Sampling(1, 1.0, 0.0), True

        def __call__(self, photo: Tensor, position: int, how: Sampling) -> Tensor:
            assert how == self.sampling
            return photo.repeat(9, 1, 1, 1) * position

    def load(spec: str) -> Fake:
        asked.append(spec)
        return Fake()

    monkeypatch.setattr(loading, "load_reference", load)
    model = open_model("reference")
    assert torch.equal(model(torch.ones(1, 3, 64, 64), 3), torch.full((9, 3, 64, 64), 3.0))
    open_model("reference:some/model")
    assert asked == ["default", "some/model"]


def test_the_reference_samples_as_its_spec_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipeline = build_reference(SMALLEST)
    asked: list[str] = []
    ways: list[Sampling | None] = []

    class Spy:
        sampling, relative = pipeline.sampling, True

        def __call__(
            self, photo: torch.Tensor, position: int, sampling: Sampling | None = None
        ) -> torch.Tensor:
            ways.append(sampling)
            return photo.repeat(9, 1, 1, 1)

    def load(spec: str) -> Spy:
        asked.append(spec)
        return Spy()

    monkeypatch.setattr(loading, "load_reference", load)
    for spec in ("reference", "reference@4", "reference@25/1.5/1", "reference:some/model@2/1"):
        open_model(spec)(torch.zeros(1, 3, 64, 64), 0)
    assert asked == ["default", "default", "default", "some/model"]
    assert ways == [
        pipeline.sampling,
        Sampling(4, 1.0, 0.0),
        Sampling(25, 1.5, 1.0),
        Sampling(2, 1.0, 0.0),
    ]
    for text in ("0", "x", "4/", "4/1/1/1", "4/-1", "4/nan", "2000", "1.5"):
        with pytest.raises(UserError, match="no way to sample"):
            open_model(f"reference@{text}")


def test_folders_named_as_models_shadow_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_reference", lambda spec: build_reference(SMALLEST))
    for name in ("reference", "autoencoder"):
        (tmp_path / name).mkdir()
        assert open_any(name).name == name
        with pytest.raises(UserError, match=r"config\.json"):
            open_any(f"./{name}")


def test_the_autoencoder_alone_reconstructs_stacks(tmp_path: Path) -> None:
    pipeline = build_reference(SMALLEST)
    save_reference(pipeline, tmp_path, {})
    spec = f"autoencoder:{tmp_path}"
    model = open_any(spec)
    assert model.reconstruct is not None
    assert model.name == spec
    stack = torch.rand(9, 3, 64, 64) * 2 - 1
    loaded = loading.load_reference(str(tmp_path))
    with torch.no_grad():
        latents = loaded.vae.encode(stack).latent_dist.mean
        parts = (loaded.vae.decode(x, num_frames=len(x)).sample for x in latents.split(8))
        expected = torch.cat(list(parts)).clamp(-1, 1)
    torch.testing.assert_close(model.reconstruct(stack), expected, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="evaluated only"):
        model(stack[:1], 0)


@pytest.mark.parametrize("name", ["executorch/student-fp32.pte", "onnx/student-fp32.onnx"])
def test_a_damaged_file_is_a_user_error(name: str, run_dir: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / name).write_bytes(b"not a model" * 50)
    with pytest.raises(UserError, match=r"SHA-256.*export again"):
        open_model(str(run / name))
    (run / "manifest.json").unlink()
    with pytest.raises(UserError, match="loads"):
        open_model(str(run / name))


@pytest.mark.parametrize("name", STUDENTS)
def test_a_shipped_student_goes_by_its_name(
    name: str, small_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened = open_model(name)
    assert (opened.name, opened.analyser and opened.analyser.pixels) == (name, 320 * 448)
    assert arguments.student_folder(Path(name)) == STUDENTS[name]
    shutil.copytree(small_student, name)  # a folder that is called so is meant
    there = open_model(name).analyser
    assert there is not None and there.pixels == 64 * 64
    assert arguments.student_folder(Path(name)) == Path(name)


@pytest.mark.parametrize("spec", ["nowhere", "nowhere.pte", "nowhere.onnx", "photo.jpg"])
def test_what_is_no_model_is_a_user_error(spec: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model at|does not exist"):
        open_model(str(tmp_path / spec))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 128, 64), "takes photos of 64x64 pixels, this one has 64x128"),
        ((2, 3, 64, 64), r"takes a photo \[1, 3, H, W\]"),
        ((3, 64, 64), r"takes a photo \[1, 3, H, W\]"),
    ],
)
def test_photos_that_do_not_fit(shape: tuple[int, ...], message: str, run_dir: Path) -> None:
    model = open_model(str(run_dir / "onnx/student-fp32.onnx"), threads=1)
    with pytest.raises(UserError, match=message):
        model(torch.zeros(shape), 0)
    with pytest.raises(UserError, match="position 9"):
        model(torch.zeros(1, 3, 64, 64), 9)


def test_a_student_says_which_sides_it_takes(small_student: Path) -> None:
    with pytest.raises(UserError, match="multiples of 64, this photo has 70x64"):
        open_model(str(small_student))(torch.zeros(1, 3, 64, 70), 0)


def test_stacks_of_one_file_do_not_share_memory(run_dir: Path) -> None:
    model = open_model(str(run_dir / "executorch/student-fp32.pte"), threads=1)
    first = model(torch.zeros(1, 3, 64, 64), 0)
    kept = first.clone()
    model(torch.ones(1, 3, 64, 64), 8)
    assert torch.equal(first, kept)


def foreign(path: Path, shapes: list[list[int | str]], made: list[int | str]) -> Path:
    """An ONNX file of these inputs, which gives zeros."""
    from onnx import TensorProto, checker, helper, save

    def value(name: str, shape: list[int | str]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    given = [value(f"in{n}", shape) for n, shape in enumerate(shapes)]
    size = helper.make_tensor("size", TensorProto.INT64, [len(made)], [int(s) for s in made])
    nodes = [
        helper.make_node("Constant", [], ["size"], value=size),
        helper.make_node("ConstantOfShape", ["size"], ["out"]),
    ]
    graph = helper.make_graph(nodes, "foreign", given, [value("out", made)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    save(model, path)
    return path


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A process that tries all files, where none of them makes it crash."""
    with Worker() as one:
        yield one


@pytest.mark.parametrize(
    ("shapes", "made", "said"),
    [
        ([[1, 3, 64, 64]], [9, 3, 64, 64], "no photo and its position"),
        ([[1, 3, 64], [1, 9]], [9, 3, 64, 64], "no photo and its position"),
        ([[1, 3, "h", "w"], [1, 9]], [9, 3, 64, 64], "no photo and its position"),
        ([[1, 3, 64, 64], [1, 10]], [9, 3, 64, 64], "no photo and its position"),
        ([[1, 3, 64, 64], [1, 9], [1]], [9, 3, 64, 64], "no photo and its position"),
        ([[1, 3, 64, 64], [1, 9]], [9, 3, 32, 32], "no stack of"),
    ],
)
def test_files_of_others_are_one_line(
    shapes: list[list[int | str]],
    made: list[int | str],
    said: str,
    tmp_path: Path,
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "run_work", worker.run)
    with pytest.raises(UserError, match=said):
        open_model(str(foreign(tmp_path / "a.onnx", shapes, made)))


def test_a_file_that_crashes_its_runtime_is_one_line(exported: Exported, tmp_path: Path) -> None:
    """Flipped bytes in a `.pte` end the process that opens it, which is not this one."""
    run = exported(["executorch/student-fp32.pte"])
    content = (run / "executorch/student-fp32.pte").read_bytes()
    (tmp_path / "a.pte").write_bytes(content[:64] + b"\xff" * 4096 + content[4160:])
    with pytest.raises(
        UserError, match=r"a\.pte cannot be executed \(.* died of SIG(SEGV|BUS|ABRT)"
    ):
        open_model(str(tmp_path / "a.pte"))


def test_a_self_ensemble_is_named_after_the_model(small_student: Path) -> None:
    model = open_model(f"{small_student}@self-ensemble")
    assert model.name == f"{small_student.name}@self-ensemble"
    assert model.analyser is not None and model.analyser.self_ensemble
    plain = open_model(str(small_student)).analyser
    assert plain is not None and not plain.self_ensemble


def test_what_makes_stacks_alone_has_no_self_ensemble(small_reference: Path) -> None:
    with pytest.raises(UserError, match=r"@self-ensemble is none: .* makes stacks alone"):
        open_model(f"reference:{small_reference}@self-ensemble")
