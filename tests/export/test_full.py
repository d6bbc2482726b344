"""The path of the full size, a tenth as wide, with one of its four levels and no residual block on
the way down: what a toolchain takes grows with the number of operators, and with all of them it
takes minutes. For the same reason only one network goes through ExecuTorch."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pocketfocus.benchmarks.verify import Verification, verify_run
from pocketfocus.cli.app import main
from pocketfocus.export.executorch.coverage import GATE
from pocketfocus.export.reference import (
    PARTS,
    calibration_stacks,
    check_stack,
    open_reference,
    reference_networks,
)
from pocketfocus.export.stage import Export, export_full, full_targets
from pocketfocus.mobile_harness.device import MIL_CHECK
from pocketfocus.mobile_harness.devices import fallbacks, get_device
from pocketfocus.models.loading import load_reference
from pocketfocus.quantize.recipes import GROUP
from pocketfocus.quantize.toolchains.executorch import linear_inputs
from pocketfocus.research.full import table
from pocketfocus.research.random_svd import write_random
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Artifact, load_manifest
from pocketfocus.run.results import VerifyRow
from pocketfocus.run.rows import read_rows
from tests.conftest import one_worker

pytestmark = pytest.mark.timeout(1200)  # lowering the UNet takes minutes on a busy machine

WIDTH, LAYERS, LEVELS, SHARD = 0.1, 0, 1, 2**18
SIZE = (16, 16)
UNET, UNET_ML, DECODER_ML = (
    "executorch/unet-int4.pte",
    "coreml/unet-int4.mlpackage",
    "coreml/decoder-int4.mlpackage",
)


class Lines(list[str]):
    """A log that can be asked."""

    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("svd")
    write_random(folder, WIDTH, LAYERS, LEVELS, SHARD)
    return folder


def asked(out: Path, targets: Sequence[str]) -> Export:
    return Export(out, targets, ["int4"], threads=1)


@pytest.fixture(scope="module")
def run(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files; tests must not change them."""
    out = tmp_path_factory.mktemp("full")
    with one_worker():
        for part, targets in (("unet", full_targets()), ("decoder", full_targets()[1:])):
            export_full(str(reference), asked(out, targets), (part,), SIZE, Lines())
        verify_run(out, get_device("host"), Verification(fallbacks=fallbacks("host")))
    return out


@pytest.fixture(scope="module")
def unet(reference: Path) -> nn.Module:
    """What goes into the files of the UNet."""
    return PARTS["unet"].make(open_reference(str(reference)))


def artifact(run: Path, name: str) -> Artifact:
    return next(a for a in load_manifest(run).artifacts if a.name == name)


def row(run: Path, name: str, coverage: bool = False) -> VerifyRow:
    rows = read_rows(run / "verify.json", VerifyRow)
    return next(r for r in rows if r.artifact == name and (r.gate == GATE) == coverage)


def test_the_random_reference_has_the_layout_of_the_hub(reference: Path) -> None:
    shards = sorted((reference / "unet").glob("*.fp16-*-of-*.safetensors"))
    assert len(shards) > 1
    with safe_open(shards[0], "pt") as opened:
        assert opened.get_tensor(next(iter(opened.keys()))).dtype == torch.float16
    loaded = load_reference(str(reference))
    assert loaded.unet.config.block_out_channels == [32]


def test_every_file_runs_within_its_gate(run: Path) -> None:
    """Core ML's by the MIL check, off macOS."""
    for name in (UNET, UNET_ML, DECODER_ML):
        found = row(run, name)
        assert (found.status, found.threshold_db) == ("pass", 35.0), found
        assert (found.run_ms or 0) > 0 < (found.peak_rss_mib or 0)
        if sys.platform != "darwin" and name != UNET:
            assert found.device == MIL_CHECK


def test_the_manifest_has_the_coverage_and_what_it_took(run: Path, unet: nn.Module) -> None:
    delegation = artifact(run, UNET).delegation
    assert delegation is not None
    assert row(run, UNET, coverage=True).status == "pass", delegation
    assert delegation.total_ops > 100
    taken = artifact(run, UNET).applied
    inputs = [linear_inputs(layer) for layer in unet.modules()]
    assert taken["linear_layers_at_4_bits"] == sum(n > 0 == n % GROUP for n in inputs) > 10
    assert list(taken["seconds"]) == ["read and fold", "quantize", "capture", "lower"]
    assert taken["peak_mib"] >= max(taken["peak_mib_after"].values()) > 100
    assert artifact(run, UNET).inputs[0].shape == (9, 8, 8, 8)
    assert artifact(run, DECODER_ML).outputs[0].shape == (9, 3, 16, 16)


def test_core_ml_has_blocks_for_ios_18(run: Path, unet: nn.Module) -> None:
    taken = artifact(run, UNET_ML).applied
    assert taken["deployment_target"] == "iOS18"
    linear = [layer for layer in unet.modules() if isinstance(layer, nn.Linear)]
    assert taken["compressed_weights"]["int4 weights"] == len(linear) > 10
    assert taken["compressed_weights"]["int8 weights"] > 10


def test_convolutions_and_linear_layers_are_small(run: Path) -> None:
    """Half a byte for weights of linear layers, one for those of convolutions, and the graph."""
    for name in (UNET, UNET_ML):
        found = artifact(run, name)
        assert found.bytes < 3 * found.applied["parameters"]


def test_finished_files_are_kept(run: Path, reference: Path) -> None:
    log = Lines()
    before = load_manifest(run)
    export_full(str(reference), asked(run, full_targets()[:1]), ("unet",), SIZE, log)
    assert log == [f"{UNET}: unchanged, kept"]
    assert load_manifest(run) == before


def test_another_input_is_another_output(run: Path, tmp_path: Path) -> None:
    """The gate fails for an output that is not that of the input."""
    copied = shutil.copytree(run, tmp_path / "run")
    check = copied / "checks/unet.safetensors"
    tensors = load_file(check)
    save_file({**tensors, "input": tensors["input"].flip(0).contiguous()}, check)
    verify_run(copied, get_device("host"))
    assert row(copied, UNET).status == "fail"


def test_the_command_line_verifies_and_prints(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copied / "checks")
    assert main(["verify", str(copied)]) == 2
    assert "run export --full again" in capsys.readouterr().err
    print(table(load_manifest(run), read_rows(run / "verify.json", VerifyRow)))
    assert f"`{UNET}`" in capsys.readouterr().out


def test_inputs_are_those_of_the_reference(reference: Path) -> None:
    """The UNet's from a photo at each position; none of the check's photos calibrates."""
    opened = open_reference(str(reference))
    stacks = calibration_stacks((32, 32))
    calls = PARTS["unet"].calls(opened, stacks)
    latents = PARTS["decoder"].calls(opened, stacks)
    assert [position for _, position in stacks] == list(range(9))
    for (call,), (latent,), (_, position) in zip(calls, latents, stacks, strict=True):
        condition = call[:, 4:]
        assert torch.equal(condition[position], latent[position])
        assert condition.abs().sum((1, 2, 3)).count_nonzero() == 1
        assert 0.8 < call[:, :4].std() < 1.2
    photo, position = check_stack((32, 32))
    assert not any(torch.equal(photo[position], s[p]) for s, p in stacks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ios", "17", "--four-bit", "blocks"], "choose --four-bit palettes, or --ios 18"),
        (["--full", "--ios", "17"], "choose --four-bit palettes, or --ios 18"),
        (["--ios", "16"], "choose from 17, 18"),
        (["--four-bit", "half"], "choose from palettes, blocks"),
        (["--full", "--targets", "onnx"], "choose from executorch, coreml"),
        (["--full", "--parts", "clip"], "choose from decoder, encoder, unet"),
        (["--full", "--size", "64x"], "WIDTHxHEIGHT"),
        (["--full", "--student", "."], "leave --student"),
        (["--full", "--sizes", "64x64"], "leave --student, --photos and --sizes out"),
        (["--parts", "unet"], "--parts unet is for the networks of a reference: write --full too"),
        (["--size", "128"], "--sizes for photos of other sizes"),
        (["--reference", "."], "--reference . is for the networks of a reference"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_size_that_does_not_fit_is_refused(reference: Path, tmp_path: Path) -> None:
    wanted = asked(tmp_path / "out", full_targets())
    with pytest.raises(UserError, match=r"101x64 do not fit .* multiples of 2"):
        export_full(str(reference), wanted, tuple(PARTS), (64, 101), Lines())
    assert not (tmp_path / "out").exists()


def test_networks_say_what_they_take_and_give(run: Path, reference: Path) -> None:
    """Before anything is computed: the shapes that were measured when the files were written."""
    opened = open_reference(str(reference))
    for network in reference_networks(opened, ["unet", "decoder"], SIZE):
        written = next(a for a in load_manifest(run).artifacts if f"/{network.name}-" in a.name)
        for said, found in (
            (network.inputs, written.inputs),
            (network.outputs, written.outputs),
        ):
            assert [(s.name, s.shape) for s in said] == [(s.name, s.shape) for s in found]


def test_a_reference_does_not_go_into_the_run_of_a_student(
    reference: Path, make_run: Callable[..., None], small_student: Path, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", small_student, ["onnx/student-fp32.onnx"])
    with pytest.raises(UserError, match="is the run of a student: choose another folder"):
        export_full(str(reference), asked(tmp_path / "run", full_targets()), tuple(PARTS), SIZE)
