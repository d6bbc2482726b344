"""The written files: executed, they are the student; and the manifest tells what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from pocketfocus.data.optics import one_hot
from pocketfocus.export.open import open_model
from pocketfocus.export.student import INPUT_NAMES
from pocketfocus.export.targets import TARGETS, get_target, left_out
from pocketfocus.models.student import Analysis, load_student
from pocketfocus.quantize.layers import layers_of
from pocketfocus.quantize.recipes import GROUP, RECIPES
from pocketfocus.quantize.toolchains.executorch import linear_inputs
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.files import size_bytes
from pocketfocus.run.manifest import Artifact, check_artifact, load_manifest
from pocketfocus.run.metrics import psnr

Pairs = list[tuple[Tensor, int]]
WRITTEN = [t for t in TARGETS if t not in left_out()]
EXECUTED = [t for t in TARGETS if get_target(t).cannot_run() is None]
HIGHEST_RANK = 5


def artifact(run_dir: Path, target: str, precision: str) -> Artifact:
    found = load_manifest(run_dir).artifacts
    return next(a for a in found if (a.target, a.precision) == (target, precision))


def test_every_target_and_precision_is_written(run_dir: Path) -> None:
    manifest = load_manifest(run_dir)
    assert [(a.target, a.precision) for a in manifest.artifacts] == [
        (target, precision) for target in WRITTEN for precision in RECIPES
    ]
    for entry in manifest.artifacts:
        path = check_artifact(run_dir, entry)
        assert entry.bytes == size_bytes(path) > 0
        assert [t.name for t in entry.inputs] == ["photo", "position"]
        assert {t.name: t.shape for t in entry.outputs} == {
            "stack": (9, 3, 64, 64),
            "sharp": (1, 3, 64, 64),
            "detail": (1, 10, 64, 64),
            "dioptres": (1, 1, 16, 16),
            "positions": (1, 9),
        }
        assert (entry.delegation is None) == (entry.target != "executorch")
        assert entry.applied["note"]


def test_the_manifest_says_what_the_files_were_made_from(
    run_dir: Path, small_student: Path
) -> None:
    manifest = load_manifest(run_dir)
    assert manifest.size == (64, 64)
    config = load_student(small_student).config
    assert manifest.student_config["channels"] == list(config.channels)
    assert sorted(set(manifest.calibration["positions"])) == list(range(9))
    assert len(manifest.calibration["photos"]) == 24
    assert set(manifest.calibration["photos"]).isdisjoint({"chelsea", "coffee"})
    assert {"torch", "executorch", "coremltools", "onnxruntime"} <= set(manifest.tools)


@pytest.mark.parametrize("precision", RECIPES)
@pytest.mark.parametrize("target", EXECUTED)
def test_an_executed_file_is_the_student(
    target: str, precision: str, run_dir: Path, pairs: Pairs, eager: list[Tensor]
) -> None:
    model = open_model(str(run_dir / artifact(run_dir, target, precision).name), threads=1)
    assert model.size == (64, 64)
    least = RECIPES[precision].min_psnr_db
    stacks = [model(photo, position) for photo, position in pairs]  # all, then compare: no reuse
    for stack, parent in zip(stacks, eager, strict=True):
        assert stack.shape == parent.shape
        assert psnr(stack, parent) >= least


@pytest.mark.parametrize("target", EXECUTED)
def test_a_file_gives_all_that_the_student_says_in_its_order(
    target: str, run_dir: Path, pairs: Pairs, analysed: list[Analysis]
) -> None:
    run = get_target(target).open(run_dir / artifact(run_dir, target, "fp32").name, 1)
    for (photo, position), parent in zip(pairs, analysed, strict=True):
        for found, truth in zip(run(photo, one_hot(position)), parent, strict=True):
            torch.testing.assert_close(found, truth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", EXECUTED)
def test_what_is_lent_is_what_is_given_until_the_next_call(
    target: str, run_dir: Path, pairs: Pairs
) -> None:
    path, chosen = run_dir / artifact(run_dir, target, "fp32").name, get_target(target)
    lent, given = (chosen.lend or chosen.open)(path, 1), chosen.open(path, 1)
    for photo, position in pairs:
        made = given(photo, one_hot(position))
        for found, kept in zip(lent(photo, one_hot(position)), made, strict=True):
            assert torch.equal(found, kept)


@pytest.mark.parametrize("target", EXECUTED)
def test_swapped_frames_and_wrong_positions_miss_every_gate(
    target: str, run_dir: Path, pairs: Pairs, eager: list[Tensor]
) -> None:
    model = open_model(str(run_dir / artifact(run_dir, target, "int4").name), threads=1)
    lowest = min(recipe.min_psnr_db for recipe in RECIPES.values())
    for (photo, position), parent in zip(pairs, eager, strict=True):
        assert psnr(model(photo, position).flip(0), parent) < lowest
        assert psnr(model(photo, 8 - position), parent) < lowest
        assert psnr(model(photo.flip(1), position), parent) < lowest
        assert psnr(model(photo, position).transpose(2, 3), parent) < lowest


@pytest.mark.parametrize("precision", RECIPES)
def test_xnnpack_takes_the_whole_graph_in_one_call(precision: str, run_dir: Path) -> None:
    delegation = artifact(run_dir, "executorch", precision).delegation
    assert delegation is not None
    assert delegation.calls == 1
    assert delegation.delegated_ops > 20
    casts = [o for o in delegation.not_delegated if "dim_order_copy" in o]
    assert list(delegation.not_delegated) == casts
    assert (len(casts) > 0) == (precision == "fp16")  # of its inputs, output and constants
    assert delegation.total_ops == delegation.delegated_ops + len(casts)
    assert delegation.share == pytest.approx(
        delegation.delegated_ops / delegation.total_ops, abs=1e-4
    )


@pytest.mark.parametrize("target", ["executorch", "onnx"])
def test_fewer_bits_make_smaller_weights(target: str, run_dir: Path) -> None:
    """By the weights where they are listed: in so small a model the graph is the larger half."""
    found = [artifact(run_dir, target, precision) for precision in RECIPES]
    sizes = [
        sum(a.applied["weight_bytes"].values()) if target == "onnx" else a.bytes for a in found
    ]
    fp32, fp16, int8, int4, mixed = sizes
    assert fp32 > int8 > 0.99 * mixed >= 0.99 * int4  # all but one layer has too few inputs
    assert fp16 > int4
    if target == "onnx":  # XNNPACK's files have the weights of convolutions in fp32 at fp16
        assert fp32 > fp16 and int8 > int4


def test_four_bit_layers_are_counted_from_the_files(run_dir: Path, small_student: Path) -> None:
    every = layers_of(load_student(small_student))
    last = ("network.detail", "network.gains", "network.pixels")
    layers = [layer for name, layer in every.items() if name not in last]
    grouped = [
        layer for layer in layers if linear_inputs(layer) > 0 == linear_inputs(layer) % GROUP
    ]
    taken = artifact(run_dir, "executorch", "int4").applied
    assert taken["linear_layers_at_4_bits"] == len(grouped) > 0
    taken = artifact(run_dir, "onnx", "int4").applied
    products = [m for m in layers if isinstance(m, nn.Linear) and m.in_features != FRAMES]
    found = taken["operators"].get("MatMulNBits", 0)
    assert taken["linear_layers_at_4_bits"] == found == len(products)


def test_onnx_files_keep_their_contract_and_no_traces(run_dir: Path) -> None:
    for precision in RECIPES:
        model = onnx.load(run_dir / artifact(run_dir, "onnx", precision).name)
        onnx.checker.check_model(model)
        values = [*model.graph.input, *model.graph.output]
        assert [v.name for v in values] == [*INPUT_NAMES, *Analysis._fields]
        assert all(v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for v in values)
        assert not any(node.metadata_props for node in model.graph.node)


def test_int8_onnx_files_keep_biases_once(run_dir: Path) -> None:
    """In float32: onnxruntime rounds them when it loads the file, and no scales are stored."""
    assert "INT32" not in artifact(run_dir, "onnx", "int8").applied["weight_bytes"]


def operators(spec: Any) -> list[Any]:
    """Every operator of a .mlpackage, loaded back into MIL."""
    return [op for function in spec.functions.values() for op in function.operations]


@pytest.mark.parametrize("precision", RECIPES)
def test_core_ml_packages_load_back_into_mil(precision: str, run_dir: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    path = run_dir / artifact(run_dir, "coreml", precision).name
    assert {found.name for found in path.iterdir()} == {"Data", "Manifest.json"}
    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    values = [*spec.description.input, *spec.description.output]
    assert [v.name for v in values] == [*INPUT_NAMES, *Analysis._fields]
    float32 = ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    assert all(v.type.multiArrayType.dataType == float32 for v in values)

    program = load(spec, spec.specificationVersion, model.weights_dir)
    found = operators(program)
    values = [o for op in found if op.op_type != "const" for o in op.outputs]
    ranks = [len(o.shape) for o in values if hasattr(o, "shape")]
    assert found
    assert max(ranks) <= HIGHEST_RANK
    kinds = {op.op_type for op in found}
    weighted = [op for op in found if op.op_type in ("conv", "conv_transpose", "linear")]
    plain = [op for op in weighted if op.weight.op.op_type == "const"]
    taken = artifact(run_dir, "coreml", precision).applied
    assert taken["float_weights"] == len(plain)
    assert taken["compressed_weights"] or len(plain) == len(weighted)
    assert "constexpr_lut_to_dense" not in kinds
    assert ({"quantize", "dequantize"} <= kinds) == (precision in ("int8", "mixed"))


def test_core_ml_off_macos_says_why(run_dir: Path) -> None:
    if get_target("coreml").cannot_run() is None:
        pytest.skip("this is macOS: the file is executed above")
    from pocketfocus.run.errors import UserError

    with pytest.raises(UserError, match="macOS only"):
        open_model(str(run_dir / artifact(run_dir, "coreml", "fp32").name))
