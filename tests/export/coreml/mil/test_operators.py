"""Every operator of the MIL check: coremltools converts a PyTorch function, and the check must
compute what PyTorch computes. Where coremltools' converter never writes an operator, the program is
built by hand and the truth stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil import mil
from torch import Tensor, nn

from pocketfocus.export.coreml.mil.operators import OPERATORS
from pocketfocus.export.coreml.mil.program import from_pymil
from pocketfocus.export.coreml.write import converted as written
from pocketfocus.export.coreml.write import operators
from pocketfocus.export.quiet import quiet
from pocketfocus.export.reference import PARTS, reference_network
from pocketfocus.mobile.layers import Downsample
from pocketfocus.models.student import RefocusStudent
from pocketfocus.quantize.layers import capture
from pocketfocus.quantize.recipes import RECIPES
from pocketfocus.research.random_svd import write_random
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import load_manifest
from tests.conftest import WITH_PRIOR

mb = mil.Builder
SHAPE = (2, 4, 6, 6)
DEPLOYMENT = ct.target.iOS18
Function = Callable[[Tensor], Tensor]


def x_of(shape: tuple[int, ...] = SHAPE, positive: bool = False) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return x.abs() + 0.5 if positive else x


class Called(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        if isinstance(function, nn.Module):
            for parameter in function.parameters():
                nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def converted(function: Function, x: Tensor) -> Any:
    """coremltools' own program of a function, float32."""
    with quiet():
        return ct.convert(
            torch.jit.trace(Called(function).eval(), x),
            inputs=[ct.TensorType(name="x", shape=tuple(x.shape))],
            minimum_deployment_target=DEPLOYMENT,
            compute_precision=ct.precision.FLOAT32,
            convert_to="milinternal",
        )


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm.running_mean = torch.tensor([0.1, -0.2, 0.3, 0.0])
    norm.running_var = torch.tensor([0.5, 1.5, 2.5, 1.0])
    return norm


SECOND = x_of((1, 4, 1, 6)) * 0.7
# name: what is converted. Values far apart in every dimension, so that a swapped axis shows.
CONVERTED: dict[str, Function] = {
    "abs": torch.abs,
    "add": lambda x: x + SECOND,
    "sub": lambda x: SECOND - x,
    "mul": lambda x: x * SECOND,
    "relu": F.relu,
    "relu6": lambda x: F.relu6(4 * x),
    "silu": F.silu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "clip": lambda x: x.clamp(-0.4, 0.9),
    "softmax": lambda x: torch.softmax(x, 1),
    "cast": lambda x: x.to(torch.int32).float(),
    "reduce_mean": lambda x: x.mean((1, 3), keepdim=True),
    "reshape": lambda x: x.reshape(4, -1, 2, 3),
    "transpose": lambda x: x.permute(3, 0, 2, 1) * 1.0,
    "expand_dims": lambda x: x.unsqueeze(2) * 2.0,
    "concat": lambda x: torch.cat([x, 2 * x[:, 1:3]], 1),
    "slice_by_index": lambda x: x[:, 1:, -5:-1:2, 3],
    "pad": lambda x: F.pad(x, (1, 2, 3, 0), value=0.5),
    "conv": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
    "conv_transpose": nn.ConvTranspose2d(4, 6, (4, 3), stride=2, padding=1, groups=2),
    "linear": nn.Linear(6, 5),
    "matmul": lambda x: x @ x.transpose(2, 3) @ x,
    "batch_norm": batch_norm(),
    "upsample_bilinear": lambda x: F.interpolate(
        x, scale_factor=2.0, mode="bilinear", align_corners=False
    ),
}
POSITIVE: dict[str, Function] = {
    "rsqrt": torch.rsqrt,
}
# name: (built with MIL's own builder, what it means)
BUILT: dict[str, tuple[Callable[[Any], Any], Function]] = {
    "quantize": (
        lambda x: mb.cast(
            x=mb.quantize(
                input=x, scale=np.float32(0.02), zero_point=np.int8(3), output_dtype="int8"
            ),
            dtype="fp32",
        ),
        lambda x: torch.quantize_per_tensor(x, 0.02, 3, torch.qint8).int_repr().float(),
    ),
    "dequantize": (
        lambda x: mb.dequantize(
            input=mb.quantize(
                input=x, scale=np.float32(0.02), zero_point=np.uint8(7), output_dtype="uint8"
            ),
            scale=np.array([0.1, 0.2, 0.3, 0.4], np.float32),
            zero_point=np.array([0, 1, 2, 3], np.uint8),
            axis=1,
        ),
        lambda x: (
            (torch.clamp(torch.round(x / 0.02) + 7, 0, 255) - torch.arange(4.0)[:, None, None])
            * torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None]
        ),
    ),
}
EXTRA: list[tuple[str, Function]] = [  # other parameters of the same operators
    ("gelu", F.gelu),
    ("softmax", lambda x: torch.softmax(x, -1)),
    ("conv", nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False)),
    ("conv", lambda x: F.conv1d(x.flatten(2), torch.ones(5, 4, 3), padding=2)),
    ("conv", nn.Conv2d(4, 4, 4, stride=3, padding="valid")),
    ("conv_transpose", nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1)),
    ("conv_transpose", nn.ConvTranspose2d(4, 3, 2, stride=2, bias=False)),
    ("matmul", lambda x: x[:1] @ x[1:]),
    ("slice_by_index", lambda x: x[1:2, ..., ::3] * 1.0),
    (
        "upsample_bilinear",
        lambda x: F.interpolate(x, scale_factor=3.0, mode="bilinear", align_corners=True),
    ),
]


def compare(program: Any, name: str, x: Tensor, truth: Tensor) -> None:
    checked = from_pymil(program)
    assert name in {op.op_type for op in checked.operations()}, "another operator was written"
    (found,) = checked({"x": x}).values()
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*CONVERTED, *POSITIVE])
def test_operator(name: str) -> None:
    function, x = CONVERTED.get(name) or POSITIVE[name], x_of(positive=name in POSITIVE)
    program = converted(function, x)
    with torch.no_grad():
        compare(program, name, x, function(x))


@pytest.mark.parametrize(("name", "function"), EXTRA)
def test_other_parameters(name: str, function: Function) -> None:
    x = x_of()
    program = converted(function, x)
    with torch.no_grad():
        compare(program, name, x, function(x))


def built(function: Callable[[Any], Any]) -> Any:
    """A program of MIL's own builder."""

    @mb.program(input_specs=[mb.TensorSpec(shape=SHAPE)], opset_version=DEPLOYMENT)
    def program(x: Any) -> Any:
        return function(x)

    return program


@pytest.mark.parametrize("name", BUILT)
def test_built_operator(name: str) -> None:
    function, truth = BUILT[name]
    compare(built(function), name, x_of(), truth(x_of()))


def test_every_operator_is_tested() -> None:
    assert {*CONVERTED, *POSITIVE, *BUILT} == set(OPERATORS)


class WithPrior(nn.Module):
    """A small student with a prior of depth, which that of the smallest preset lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.student = RefocusStudent(**WITH_PRIOR)

    def forward(self, x: Tensor) -> Tensor:
        found = self.student.network(x, torch.eye(9)[:1])
        return found.gains[:, :9] * found.position[:, :, None, None]


@pytest.mark.timeout(300)
def test_only_what_files_contain_is_here(
    exported: Callable[[Sequence[str]], Path], tmp_path: Path
) -> None:
    """Of a student in every form, of each part of a reference that is built as the published one
    is, and of what halves images where that has several levels."""
    write_random(tmp_path, width=0.1, layers=0, levels=1)
    run = exported([f"coreml/student-{precision}.mlpackage" for precision in RECIPES])
    found = {
        name for artifact in load_manifest(run).artifacts for name in artifact.applied["operators"]
    }
    for module, x in ((Downsample(4, False), x_of()), (WithPrior(), torch.zeros(1, 3, 32, 64))):
        found |= {op.op_type for op in from_pymil(converted(module, x)).operations()}
    for part in PARTS:
        network = reference_network(str(tmp_path), part, (16, 16))
        with quiet():
            captured = capture(network.make(), network.calibration()[:1]).run_decompositions({})
            found |= operators(written(captured, RECIPES["fp32"], network).get_spec()).keys()
    assert sorted(OPERATORS.keys() - found) == []


def test_an_unknown_operator_is_named_and_nothing_runs() -> None:
    program = built(lambda x: mb.relu(x=mb.cumsum(x=mb.scaled_tanh(x=x, alpha=1.0, beta=2.0))))
    with pytest.raises(UserError, match=r"does not know the operators cumsum, scaled_tanh"):
        from_pymil(program)


@pytest.mark.parametrize(
    ("built_with", "message"),
    [
        (
            lambda x: mb.conv(x=x, weight=np.ones((2, 4, 3, 3), np.float32), pad_type="same"),
            r"cannot run conv conv_0 \(pad_type same\)",
        ),
        (
            lambda x: mb.pad(x=x, pad=[1, 1], mode="reflect"),
            r"cannot run pad pad_0 \(mode reflect\)",
        ),
    ],
)
def test_a_parameter_that_is_not_known_names_the_operator(
    built_with: Callable[[Any], Any], message: str
) -> None:
    program = built(built_with)
    with pytest.raises(UserError, match=message):
        from_pymil(program)({"x": x_of()})


def test_values_are_rounded_to_what_the_program_declares() -> None:
    program = from_pymil(built(lambda x: mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32")))
    x = torch.full(SHAPE, 1 / 3)
    (declared,) = program({"x": x}).values()
    (kept,) = program({"x": x}, declared=False).values()
    assert torch.equal(declared, x.half().float())
    assert torch.equal(kept, x)


@pytest.mark.parametrize("feeds", [{}, {"x": torch.zeros(1, 4, 6, 6)}])
def test_inputs_of_another_shape(feeds: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"takes x \[2, 4, 6, 6\], it was given"):
        from_pymil(built(lambda x: mb.relu(x=x)))(feeds)
