"""Core ML: .mlpackage folders (ML programs for iOS 18), written anywhere, executed on macOS."""

from __future__ import annotations

import platform
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from pocketfocus.errors import UserError
from pocketfocus.export.quiet import quiet
from pocketfocus.export.targets import (
    INPUT_NAMES,
    OUTPUT_NAME,
    Runner,
    Target,
    Written,
    input_specs,
    never,
)
from pocketfocus.quantize.calibration import Calibration
from pocketfocus.quantize.coreml import PALETTE_GROUP, SMALLEST_WEIGHT, palettized, program
from pocketfocus.quantize.recipes import Recipe
from pocketfocus.student import RefocusStudent

DEPLOYMENT = "iOS18"
WEIGHTED = ("conv", "conv_transpose", "linear")
WRITER_FAILED = "[MIL FileWriter]"  # how its RuntimeError begins when the disk is full
COMPRESSED = {
    "constexpr_lut_to_dense": "4-bit palettes",
    "constexpr_blockwise_shift_scale": "int8 weights",
}
NOTES = {
    32: "float32 throughout, on CPU or GPU: the Neural Engine computes in float16",
    16: "float16 weights and operators, inputs and output stay float32",
    8: "int8 weights, one scale a channel, and int8 activations, one scale a tensor, from a PT2E "
    "graph; the operators between quantize and dequantize in float16",
    4: f"weights only: 16-entry palettes for every {PALETTE_GROUP} channels; weights under "
    f"{SMALLEST_WEIGHT} elements or whose output channels are no multiple of {PALETTE_GROUP} (the "
    "last layer, 27), activations and all operators stay float16",
}


def write(student: RefocusStudent, recipe: Recipe, inputs: Calibration, path: Path) -> Written:
    """Capture, convert, compress and save."""
    try:
        with quiet():
            captured = program(student, recipe, inputs)
            model = converted(captured, student.config["size"], recipe.weight_bits)
            if recipe.weight_bits == 4:
                model = palettized(model)
            model.save(str(path))
    except RuntimeError as error:
        if str(error).startswith(WRITER_FAILED):
            raise OSError(f"{error} (a full disk, here or in the temporary folder)") from error
        raise
    return Written(facts(model.get_spec(), recipe))


def converted(captured: ExportedProgram, size: int, weight_bits: int) -> Any:
    """An ML program with named float32 inputs and output."""
    import coremltools as ct

    precision = ct.precision.FLOAT32 if weight_bits == 32 else ct.precision.FLOAT16
    return ct.convert(
        captured,
        inputs=[
            ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.float32)
            for spec in input_specs(size)
        ],
        outputs=[ct.TensorType(name=OUTPUT_NAME, dtype=np.float32)],
        minimum_deployment_target=ct.target[DEPLOYMENT],
        compute_precision=precision,
        convert_to="mlprogram",
        skip_model_load=True,
    )


def facts(spec: Any, recipe: Recipe) -> dict[str, Any]:
    """What is in the file: its operators, and how many weights are compressed in which way."""
    operators = Counter(
        operation.type
        for function in spec.mlProgram.functions.values()
        for block in function.block_specializations.values()
        for operation in block.operations
        if operation.type != "const"
    )
    return {
        "deployment_target": DEPLOYMENT,
        "operators": dict(sorted(operators.items())),
        "compressed_weights": {
            meaning: operators[name] for name, meaning in COMPRESSED.items() if operators[name]
        },
        "float_weights": sum(operators[name] for name in WEIGHTED)
        - sum(operators[name] for name in COMPRESSED),
        "note": NOTES[recipe.weight_bits],
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

    def run(photo: Tensor, position: Tensor) -> Tensor:
        feed = dict(zip(INPUT_NAMES, (photo.numpy(), position.numpy()), strict=True))
        return torch.from_numpy(np.asarray(model.predict(feed)[OUTPUT_NAME], dtype=np.float32))

    return run


def photo_size(path: Path) -> int:
    """Width of the photo that a file takes."""
    from coremltools.models.utils import load_spec

    return int(load_spec(str(path)).description.input[0].type.multiArrayType.shape[-1])


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
)
