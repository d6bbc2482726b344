"""Core ML: .mlpackage folders (ML programs for iOS 17 or 18), written anywhere, run on macOS."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from pocketfocus.export.coreml.read import schemes, weight_names
from pocketfocus.export.quiet import quiet
from pocketfocus.export.targets import (
    OUTPUT_NAME,
    Runner,
    Target,
    Written,
    input_specs,
    never,
)
from pocketfocus.models.student import RefocusStudent
from pocketfocus.quantize.calibration import Calibration
from pocketfocus.quantize.coreml import TARGET as CHOSEN_BY
from pocketfocus.quantize.coreml import (
    choices,
    compressed,
    config_of,
    kernel_area,
    program,
)
from pocketfocus.quantize.executorch import capture
from pocketfocus.quantize.layers import execution_order
from pocketfocus.quantize.plan import (
    Choice,
    Weighted,
    by_layer,
    statement,
    summary,
    told_apart,
)
from pocketfocus.quantize.recipes import Recipe, Scheme
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import TensorSpec

DEBUG_TABLE = "executorch_debug_handle_mapping.json"
WRITER_FAILED = "[MIL FileWriter]"  # how its RuntimeError begins when the disk is full
NOTES = {
    32: "float32 throughout, on CPU or GPU: the Neural Engine computes in float16",
    16: "float16 weights and operators, inputs and output stay float32",
    8: "int8 activations from a PT2E graph; the operators between quantize and dequantize, and "
    "what no layer follows, in float16",
    4: "activations and operators of layers with weights alone compressed stay float16",
}


def write(student: RefocusStudent, recipe: Recipe, inputs: Calibration, path: Path) -> Written:
    """Capture, convert, compress and save; then read what is in the file."""
    with quiet():
        chosen = choices(recipe, student)
        order = execution_order(capture(student, inputs).graph)
        specs = input_specs(student.photo_size)
        model = converted(program(student, recipe, inputs), recipe, specs, OUTPUT_NAME)
        model = compressed(model, configs(student, chosen, order, weight_names(model)))
        save(model, path)
        found = schemes(path)
    layers = by_layer(order, found, "the package")
    taken = {
        **facts(model.get_spec(), [scheme for scheme, _ in found], recipe),
        "note": f"{summary(layers)}; {NOTES[recipe.weight_bits]}",
        "layers": statement(recipe.asked(CHOSEN_BY, layers), chosen, layers),
    }
    return Written(taken)


def configs(
    student: RefocusStudent,
    chosen: Mapping[str, Choice],
    order: Sequence[Weighted],
    weights: Sequence[Weighted],
) -> dict[str, Any]:
    """How each weight of a program is to be compressed, by its name there."""
    names = told_apart(order, [count for _, count in weights], "the program")
    return {
        weight: config_of(chosen[name].scheme, kernel_area(student.get_submodule(name)))
        for name, (weight, _) in zip(names, weights, strict=True)
        if name
    }


def label(scheme: Scheme) -> str:
    """A compressed weight in two words."""
    return (
        f"{scheme.bits}-bit palettes" if scheme.form == "palette" else f"int{scheme.bits} weights"
    )


def save(model: Any, path: Path) -> None:
    """Write a model; OSError when the disk is full.

    coremltools leaves a table for ExecuTorch's debugger in packages of captured graphs: as large as
    the program itself, and nothing reads it here.
    """
    try:
        model.save(str(path))
        (path / DEBUG_TABLE).unlink(missing_ok=True)
    except RuntimeError as error:
        if str(error).startswith(WRITER_FAILED):
            raise OSError(f"{error} (a full disk, here or in the temporary folder)") from error
        raise


def converted(
    captured: ExportedProgram, recipe: Recipe, inputs: Sequence[TensorSpec], output: str
) -> Any:
    """An ML program with float32 inputs and output of these names."""
    import coremltools as ct

    precision = ct.precision.FLOAT32 if recipe.weight_bits == 32 else ct.precision.FLOAT16
    passes = ct.PassPipeline()  # numbers of any size are kept once, not those of 100 elements alone
    passes.set_options("common::const_deduplication", {"const_threshold": 1})
    return ct.convert(
        captured,
        inputs=[
            ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.float32) for spec in inputs
        ],
        outputs=[ct.TensorType(name=output, dtype=np.float32)],
        minimum_deployment_target=ct.target[f"iOS{recipe.ios}"],
        compute_precision=precision,
        convert_to="mlprogram",
        pass_pipeline=passes,
        skip_model_load=True,
    )


def operators(spec: Any) -> dict[str, int]:
    """How many operators of each kind are in a program."""
    found = Counter(
        operation.type
        for function in spec.mlProgram.functions.values()
        for block in function.block_specializations.values()
        for operation in block.operations
        if operation.type != "const"
    )
    return dict(sorted(found.items()))


def facts(spec: Any, kept: Sequence[Scheme], recipe: Recipe) -> dict[str, Any]:
    """What is in a file: its operators, and how many weights are kept in which way."""
    return {
        "deployment_target": f"iOS{recipe.ios}",
        "operators": operators(spec),
        "compressed_weights": dict(Counter(label(scheme) for scheme in kept if scheme.bits < 16)),
        "float_weights": sum(scheme.bits >= 16 for scheme in kept),
    }


def open_file(path: Path, threads: int | None = None) -> Runner:
    """A model on all compute units; Core ML chooses its own `threads`."""
    reason = cannot_run()
    if reason is not None:
        raise UserError(f"{path} cannot be executed here: {reason}")
    import coremltools as ct

    try:
        with quiet():
            model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.ALL)
    except Exception as error:  # its exception types share no public base
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{path} is no Core ML package that loads ({line})") from error

    description = model.get_spec().description
    names, (output,) = [value.name for value in description.input], description.output

    def run(*inputs: Tensor) -> Tensor:
        feed = dict(zip(names, (value.numpy() for value in inputs), strict=True))
        return torch.from_numpy(np.asarray(model.predict(feed)[output.name], dtype=np.float32))

    return run


def photo_size(path: Path) -> tuple[int, int]:
    """(H, W) of the photo that a file takes."""
    from coremltools.models.utils import load_spec

    _, _, height, width = load_spec(str(path)).description.input[0].type.multiArrayType.shape
    return int(height), int(width)


def cannot_run() -> str | None:
    """Why not: Core ML predicts on macOS only."""
    system = platform.system()
    if system != "Darwin":
        return f"Core ML predicts on macOS only, this is {system}"
    return cannot_write()


def cannot_write() -> str | None:
    """Why not: coremltools is missing."""
    try:
        with quiet():
            import_module("coremltools")
    except ImportError as error:
        return f"{error}; make setup installs coremltools"
    return None


TARGET = Target(
    name="coreml",
    suffix=".mlpackage",
    write=write,
    open=open_file,
    photo_size=photo_size,
    cannot_run=cannot_run,
    cannot_write=cannot_write,
    refuses=never,
    runtime="coremltools",
    fallback="mil-check",
)
