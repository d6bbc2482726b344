"""Saved packages against the modules they came from, and proof that damage shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pocketfocus.benchmarks.gates import gate_of
from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.export.coreml.mil.program import Program, load_program
from pocketfocus.export.coreml.read import WEIGHTED
from pocketfocus.export.quiet import quiet
from pocketfocus.mobile_harness.device import Job
from pocketfocus.mobile_harness.devices import fallbacks, get_device
from pocketfocus.models.student import CELL, Analysis, RefocusStudent, load_student
from pocketfocus.quantize.calibration import fitted
from pocketfocus.quantize.recipes import RECIPES
from pocketfocus.run.errors import UserError
from pocketfocus.run.metrics import psnr

SIZE = 64


@pytest.fixture(scope="session")
def packages(run_dir: Path) -> dict[str, Path]:
    """The small student's package at every precision."""
    return {name: run_dir / f"coreml/student-{name}.mlpackage" for name in RECIPES}


@pytest.fixture(scope="session")
def student(small_student: Path) -> RefocusStudent:
    return load_student(small_student)


def pair(position: int = 6) -> tuple[Tensor, Tensor]:
    return fitted(Image.fromarray(held_out_photos()[0]), (SIZE, SIZE)), one_hot(position)


@pytest.mark.parametrize("precision", RECIPES)
def test_a_students_package_is_the_student(
    precision: str, packages: dict[str, Path], student: RefocusStudent
) -> None:
    program = load_program(packages[precision])
    with torch.no_grad():
        for position in (0, 6):
            truth = student.analyse(*pair(position))
            found = Analysis(*program.run(*pair(position)))
            assert all(a.shape == b.shape for a, b in zip(found, truth, strict=True))
            for name in ("stack", "sharp", "detail"):
                pictures = getattr(found, name), getattr(truth, name)
                assert psnr(*pictures) >= gate_of(precision).threshold_db


def stack_of(program: Program, declared: bool = True) -> Tensor:
    return program(dict(zip(("photo", "position"), pair(), strict=True)), declared)["stack"]


def test_float16_is_what_a_float16_program_loses(
    packages: dict[str, Path], student: RefocusStudent
) -> None:
    """Operators left in float32 show the weights' own rounding alone."""
    program = load_program(packages["fp16"])
    with torch.no_grad():
        truth = student.stack(*pair())
    assert psnr(stack_of(program), truth) + 1 < psnr(stack_of(program, declared=False), truth) < 110


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_equal_numbers_are_in_a_package_once(precision: str, packages: dict[str, Path]) -> None:
    spec = ct.models.MLModel(str(packages[precision]), skip_model_load=True).get_spec()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    texts = {ct.proto.MIL_pb2.STRING, ct.proto.MIL_pb2.BOOL}
    values = [op.attributes["val"] for op in block.operations if op.type == "const"]
    numbers = [
        value.SerializeToString(deterministic=True)
        for value in values
        if value.type.tensorType.dataType not in texts
    ]
    assert len(numbers) > 30
    assert len(numbers) == len(set(numbers))


def weight_names(program: Program) -> list[str]:
    """The weights of the network's convolutions and linear layers, in order."""
    names = [op.weight.name for op in program.operations() if op.op_type in WEIGHTED]
    return [name for name in names if "network" in name and name in program.constants]


@pytest.mark.parametrize("damage", ["flipped weight", "swapped axis", "another layer's bias"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_damaged_weights_fail_the_gate(
    damage: str, precision: str, packages: dict[str, Path], student: RefocusStudent
) -> None:
    program = load_program(packages[precision])
    constants = dict(program.constants)
    # the layer that nothing follows that forgives, and its bias
    name = next(name for name in weight_names(program) if "pixels" in name)
    convolutions = [op for op in program.operations() if op.op_type == "conv"]
    bias = next(op.bias.name for op in convolutions if op.weight.name == name)
    if damage == "flipped weight":
        constants[name] = -constants[name]
    elif damage == "swapped axis":  # rows and columns of the pixels that a place adds
        for part in (name, bias):
            cells = constants[part].unflatten(0, (-1, CELL, CELL))
            constants[part] = cells.transpose(1, 2).flatten(0, 2)
    else:
        constants[bias] = constants[bias].flip(0)
    with torch.no_grad():
        truth = student.stack(*pair())
    found = psnr(stack_of(Program(program.path, program.function, constants)), truth)
    assert found < gate_of(precision).threshold_db


def test_wrong_integers_in_the_file_fail_the_gate(
    packages: dict[str, Path], student: RefocusStudent, tmp_path: Path
) -> None:
    """The bytes of integers in weight.bin, each layer's backwards, loaded from disk."""

    def stored(integers: NDArray[Any]) -> NDArray[Any]:
        pairs = np.ascontiguousarray(integers).astype(np.int8).ravel()
        if np.abs(pairs).max() > 8:
            return pairs  # of 8 bits
        return (pairs[::2] & 15 | pairs[1::2] << 4).astype(np.uint8)

    program = load_program(packages["int4"])
    operations = program.function.operations
    weights = [op for op in operations if op.op_type == "constexpr_blockwise_shift_scale"]
    packed = [stored(op.data.val) for op in weights]
    broken = tmp_path / "broken.mlpackage"
    for path in packages["int4"].rglob("*"):
        copy = broken / path.relative_to(packages["int4"])
        if path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            for numbers in packed if path.name == "weight.bin" else ():
                assert content.count(numbers.tobytes()) == 1
                content = content.replace(numbers.tobytes(), numbers[::-1].tobytes())
            copy.write_bytes(content)
    with torch.no_grad():
        truth = student.stack(*pair())
    assert psnr(load_program(broken).run(*pair())[0], truth) < gate_of("int4").threshold_db
    assert psnr(program.run(*pair())[0], truth) >= gate_of("int4").threshold_db


def test_what_is_no_program_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mlpackage").mkdir()
    with pytest.raises(UserError, match=r"a\.mlpackage is no Core ML program that loads"):
        load_program(tmp_path / "a.mlpackage")


def test_other_inputs_than_a_program_s_are_refused(tmp_path: Path) -> None:
    with quiet():
        model: Any = ct.convert(
            torch.jit.trace(nn.ReLU(), torch.zeros(2)),
            inputs=[ct.TensorType(name="x", shape=(2,))],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
        model.save(str(tmp_path / "relu.mlpackage"))
    program = load_program(tmp_path / "relu.mlpackage")
    for inputs in (pair(), ()):
        with pytest.raises(UserError, match=r"takes x \[2\], it was given"):
            program.run(*inputs)


def test_the_device_runs_packages_and_leaves_the_rest_to_the_host(
    packages: dict[str, Path], student: RefocusStudent
) -> None:
    device = get_device("mil-check")
    assert device in fallbacks("host")
    inputs = (pair()[0].numpy()[None], np.eye(9, dtype=np.float32)[:, None])
    job = Job(str(packages["int8"]), "coreml", inputs, [(0, 6), (0, 1)], want_outputs=True)
    outputs = device.run(job).outputs
    assert outputs is not None
    with torch.no_grad():
        for stack, position in zip(outputs[0], (6, 1), strict=True):
            assert psnr(torch.from_numpy(stack), student.stack(*pair(position))) >= 40
    assert device.why_not("coreml") is None
