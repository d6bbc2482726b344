"""Every rule of `lint` finds what it is about, in graphs that have it, and nothing in others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import Tensor, nn

from pocketfocus.benchmarks import lint as lint_module
from pocketfocus.benchmarks.lint import FLOAT16_MOST, lint, overflow, pictures
from pocketfocus.cli.app import main
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.export.targets import Advice, Layer, get_target
from pocketfocus.quantize.calibration import fitted
from pocketfocus.run.errors import UserError

pytestmark = pytest.mark.usefixtures("one_process")

Exported = Callable[[Sequence[str]], Path]


def rules(target: str, path: Path) -> set[str]:
    return {each.rule for each in get_target(target).lint(path)}


# Core ML


def package(function: Callable[[Any], Any], path: Path, shape: tuple[int, ...]) -> Path:
    """What coremltools' own builder makes of a function, as a package."""
    import coremltools as ct
    from coremltools.converters.mil import mil

    @mil.Builder.program(
        input_specs=[mil.Builder.TensorSpec(shape=shape)], opset_version=ct.target.iOS18
    )
    def program(x: Any) -> Any:
        return function(x)

    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18)
    model.save(str(path))
    return path


def palette(values: int) -> Any:
    """A weight [8,4,1,1] of so many values."""
    from coremltools.converters.mil import mil

    indices = (np.arange(32).reshape(8, 4, 1, 1) % values).astype(np.uint8)
    kinds = {4: "uint2", 16: "uint4"}
    from coremltools.converters.mil.mil import types

    kind = types.nptype_from_builtin(types.string_to_builtin(kinds[values]))
    lut = np.linspace(-1, 1, values, dtype=np.float16).reshape(1, 1, 1, 1, values, 1)
    return mil.Builder.constexpr_lut_to_dense(indices=indices.astype(kind), lut=lut)


def of_palette(values: int, scaled: bool = False, stride: int = 1) -> Callable[[Any], Any]:
    def function(x: Any) -> Any:
        from coremltools.converters.mil import mil

        weight = palette(values)
        if scaled:
            scale = np.full((8, 1, 1, 1), 0.5, np.float16)
            weight = mil.Builder.constexpr_blockwise_shift_scale(data=weight, scale=scale)
        x = mil.Builder.cast(x=x, dtype="fp16")
        return mil.Builder.conv(x=x, weight=weight, strides=[1, stride])

    return function


def strided(x: Any) -> Any:
    from coremltools.converters.mil import mil

    weight = np.ones((8, 4, 1, 1), np.float32)
    return mil.Builder.conv(x=x, weight=weight, strides=[4, 4])


def of_blocks(x: Any) -> Any:
    from coremltools.converters.mil import mil

    weight = mil.Builder.constexpr_blockwise_shift_scale(
        data=np.ones((8, 4, 1, 1), np.int8), scale=np.full((8, 2, 1, 1), 0.5, np.float16)
    )
    return mil.Builder.conv(x=mil.Builder.cast(x=x, dtype="fp16"), weight=weight)


def attention(x: Any) -> Any:
    from coremltools.converters.mil import mil

    scores = mil.Builder.matmul(x=x, y=x, transpose_y=True)
    return mil.Builder.matmul(x=mil.Builder.softmax(x=scores, axis=-1), y=x)


@pytest.mark.parametrize(
    ("function", "shape", "found"),
    [
        (of_palette(16), (1, 4, 6, 6), {"palettes-of-4-bits"}),
        (of_palette(4), (1, 4, 6, 6), set()),
        (of_palette(4, scaled=True), (1, 4, 6, 6), {"scaled-palettes"}),
        (of_palette(4, stride=2), (1, 4, 6, 6), set()),
        (of_palette(4, stride=3), (1, 4, 6, 6), {"strided-palettes"}),
        (
            of_palette(4, scaled=True, stride=3),
            (1, 4, 6, 6),
            {"scaled-palettes", "strided-palettes"},
        ),
        (strided, (1, 4, 8, 8), set()),
        (of_blocks, (1, 4, 6, 6), {"integers-in-blocks"}),
        (attention, (2, 5, 4), {"attention-of-rank-3"}),
        (attention, (1, 2, 5, 4), set()),
    ],
    ids=[
        "16 values",
        "4 values",
        "scaled",
        "stride 2",
        "stride 3",
        "scaled, stride 3",
        "float, stride 4",
        "blocks",
        "rank 3",
        "rank 4",
    ],
)
def test_core_ml(
    function: Callable[[Any], Any], shape: tuple[int, ...], found: set[str], tmp_path: Path
) -> None:
    assert rules("coreml", package(function, tmp_path / "a.mlpackage", shape)) == found


# ONNX


def graph(*nodes: onnx.NodeProto, opset: int, tmp_path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, [1, 4, 6, 6]) for n in "xy")
    weight = helper.make_tensor("w", TensorProto.FLOAT16, [4, 4, 3, 3], np.zeros(144))
    two = helper.make_tensor("two", TensorProto.FLOAT16, [], [2.0])
    made = helper.make_graph(nodes, "g", [x], [y], [weight, two])
    made.value_info.append(helper.make_tensor_value_info("p", TensorProto.FLOAT16, [1, 4, 6, 6]))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(made, opset_imports=imports), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


SQUARED = (
    helper.make_node("Pow", ["x", "two"], ["p"]),
    helper.make_node("Relu", ["p"], ["y"]),
)


@pytest.mark.parametrize(
    ("nodes", "opset", "found"),
    [
        ([helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER")], 18,
         {"padding-same"}),
        ([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], 18, set()),
        (SQUARED, 16, {"norms-in-float16"}),
        (SQUARED, 18, set()),
        ([helper.make_node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft")], 18,
         {"not-standard"}),
    ],
    ids=["auto_pad", "numbers", "opset 16", "opset 18", "contributed"],
)  # fmt: skip
def test_onnx(nodes: Sequence[onnx.NodeProto], opset: int, found: set[str], tmp_path: Path) -> None:
    assert rules("onnx", graph(*nodes, opset=opset, tmp_path=tmp_path)) == found


# ExecuTorch


def program(module: nn.Module, x: Tensor, path: Path) -> Path:
    """A module lowered to XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(module.eval(), (x,))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return path


class Broken(nn.Module):
    """Two convolutions, and between them what XNNPACK does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 192, 1), nn.Conv2d(192, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).cumsum(-1))


def test_executorch(tmp_path: Path) -> None:
    x = torch.zeros(1, 3, 8, 8)
    path = program(Broken(), x, tmp_path / "a.pte")
    assert rules("executorch", path) == {"not-delegated", "several-calls", "adreno-channels"}
    assert rules("executorch", program(nn.Conv2d(3, 64, 1), x, tmp_path / "b.pte")) == set()


# values


@pytest.mark.parametrize(("value", "severity"), [(1e4, None), (2e4, "warning"), (1e5, "error")])
def test_values_near_the_end_of_float16(value: float, severity: str | None) -> None:
    def layers(_: Path, feeds: Mapping[str, Tensor]) -> tuple[list[Layer], Tensor]:
        bright = float(feeds["photo"].mean()) > 0.99  # white alone
        made = [
            Layer("", "small", torch.ones(2)),
            Layer("", "large", -value * bright * torch.ones(2)),
        ]
        return made, torch.zeros(1)

    target = replace(get_target("onnx"), layers=layers)
    found = list(overflow(target, Path("a.onnx"), (64, 64)))
    assert [(each.severity, each.where) for each in found] == [(severity, "large")] * bool(severity)
    assert torch.finfo(torch.float16).max == FLOAT16_MOST


def test_values_are_looked_at_on_every_photo_that_nothing_was_trained_on() -> None:
    seen, wanted = pictures((64, 96)), [Image.fromarray(each) for each in held_out_photos()]
    assert len(wanted) > 1
    for photo in wanted:
        assert any(torch.equal(fitted(photo, (64, 96)), each) for each in seen)


# the command


def test_files_of_a_run(
    small_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, run = "coreml/student-int4.mlpackage", tmp_path / "run"
    wanted = ["--targets", "coreml", "--precisions", "int4,fp16", "--four-bit", "palettes"]
    assert main(["export", "--student", str(small_student), "--out", str(run), *wanted]) == 0
    capsys.readouterr()
    assert main(["verify", str(run), "--positions", "4"]) == 0
    assert f"lint: 2 warnings: see pocketfocus lint {run}" in capsys.readouterr().err
    assert main(["lint", str(run), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    found = ["palettes-of-4-bits", "strided-palettes"]  # the stem's stride is 4
    assert [(row["file"], row["rule"]) for row in rows] == [(name, rule) for rule in found]
    assert main(["lint", str(run / name)]) == 0
    out, err = capsys.readouterr()
    assert "palettes-of-4-bits" in out and "https://" in out and "2 warnings" in err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.pte", None, "is missing"),
        ("a.txt", b"x", "name a run, or a file that ends in .pte, "),
        ("a.onnx", b"\xff" * 9, "is no ONNX file"),
        ("a.pte", b"x" * 90, "is no ExecuTorch program"),
    ],
)
def test_what_is_no_file_is_one_line(
    name: str, content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["lint", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_graph_that_its_reader_stumbles_over_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a .pte file of which a few bytes were flipped."""

    def stumbling(_: Path) -> list[Advice]:
        nothing: list[list[Advice]] = []
        return nothing[0]

    target = replace(get_target("executorch"), lint=stumbling)
    monkeypatch.setattr(lint_module, "target_of", lambda _: target)
    (tmp_path / "a.pte").touch()
    assert main(["lint", str(tmp_path / "a.pte")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.pte has a damaged graph (IndexError: list index out of range): export it" in line


def test_an_error_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = package(of_palette(4, scaled=True), tmp_path / "a.mlpackage", (1, 4, 6, 6))
    assert main(["lint", str(path)]) == 1
    assert "error: a.mlpackage" in capsys.readouterr().out


def test_a_damaged_file_of_a_run_is_refused(exported: Exported) -> None:
    run = exported(["onnx/student-fp32.onnx"])
    (run / "onnx/student-fp32.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match="SHA-256"):
        lint(run)
