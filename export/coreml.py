"""Core ML: .mlpackage folders (ML programs for iOS 17 or 18), written anywhere, run on macOS."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
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
from pocketfocus.manifest import TensorSpec
from pocketfocus.quantize.calibration import Calibration
from pocketfocus.quantize.coreml import PALETTE_GROUP, SMALLEST_WEIGHT, compressed, program
from pocketfocus.quantize.recipes import Recipe
from pocketfocus.student import RefocusStudent

WEIGHTED = ("conv", "conv_transpose", "linear")
WRITER_FAILED = "[MIL FileWriter]"  # how its RuntimeError begins when the disk is full
COMPRESSED = {
    "constexpr_lut_to_dense": "4-bit palettes",
    "constexpr_blockwise_shift_scale": "int{bits} weights",
    "constexpr_affine_dequantize": "int8 weights",  # of iOS 17
}
FORM_NOTES = {
    ("palettes", 18): f"16-entry palettes for every {PALETTE_GROUP} channels",
    ("palettes", 17): "one 16-entry palette a weight: iOS 17 has no others",
    ("blocks", 18): "integers, one scale a block of 32",
}
NOTES = {
    32: "float32 throughout, on CPU or GPU: the Neural Engine computes in float16",
    16: "float16 weights and operators, inputs and output stay float32",
    8: "int8 weights, one scale a channel, and int8 activations, one scale a tensor, from a PT2E "
    "graph; the operators between quantize and dequantize in float16",
    4: f"weights only; those under {SMALLEST_WEIGHT} elements or whose channels are no whole "
    "groups (the last layer, 27), activations and all operators stay float16",
}


def write(student: RefocusStudent, recipe: Recipe, inputs: Calibration, path: Path) -> Written:
    """Capture, convert, compress and save."""
    with quiet():
        captured = program(student, recipe, inputs)
        specs = input_specs(student.photo_size)
        model = converted(captured, recipe, specs, OUTPUT_NAME)
        if recipe.weight_bits == 4:
            model = compressed(model, recipe)
        save(model, path)
    return Written(facts(model.get_spec(), recipe))


def save(model: Any, path: Path) -> None:
    """Write a model; OSError when the disk is full."""
    try:
        model.save(str(path))
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
    return ct.convert(
        captured,
        inputs=[
            ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.float32) for spec in inputs
        ],
        outputs=[ct.TensorType(name=output, dtype=np.float32)],
        minimum_deployment_target=ct.target[f"iOS{recipe.ios}"],
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
        "deployment_target": f"iOS{recipe.ios}",
        "operators": dict(sorted(operators.items())),
        "compressed_weights": {
            meaning.format(bits=recipe.weight_bits): operators[name]
            for name, meaning in COMPRESSED.items()
            if operators[name]
        },
        "float_weights": sum(operators[name] for name in WEIGHTED)
        - sum(operators[name] for name in COMPRESSED),
        "note": note_of(recipe),
    }


def note_of(recipe: Recipe) -> str:
    """What was taken of the recipe, in a sentence."""
    note = NOTES[recipe.weight_bits]
    return f"{FORM_NOTES[recipe.form, recipe.ios]}; {note}" if recipe.weight_bits == 4 else note


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
)
