"""ONNX: .onnx files for onnxruntime on Android, iOS and in a phone's browser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor

from pocketfocus.export.quiet import quiet
from pocketfocus.export.targets import (
    INPUT_NAMES,
    OUTPUT_NAME,
    Runner,
    Target,
    Written,
    never,
)
from pocketfocus.run.errors import UserError

if TYPE_CHECKING:
    from pocketfocus.models.student import RefocusStudent
    from pocketfocus.quantize.calibration import Calibration
    from pocketfocus.quantize.plan import Choice
    from pocketfocus.quantize.recipes import Recipe

FOUR_BIT = "MatMulNBits"
NOTES = {
    32: "float32 throughout",
    16: "inputs and output stay float32; onnxruntime's CPU kernels compute in float32 where they "
    "have no float16 form",
    8: "unsigned int8 activations (QDQ); activation functions, and what no layer follows, float32",
    4: "what is no layer stays float32",
}


def write(student: RefocusStudent, recipe: Recipe, inputs: Calibration, path: Path) -> Written:
    """Capture, convert, quantize, check and save as one self-contained file; then read it."""
    from pocketfocus.quantize.onnx import choices, quantized

    with quiet():
        chosen = choices(recipe, student)
        schemes = {name: choice.scheme for name, choice in chosen.items()}
        model = quantized(converted(student, inputs), schemes, inputs)
        strip(model)
        onnx.checker.check_model(model, full_check=False)
        onnx.save(model, path)
    return Written(facts(onnx.load(path), recipe, chosen))


def converted(student: RefocusStudent, inputs: Calibration) -> onnx.ModelProto:
    """The float32 model, by PyTorch's exporter from its own captured graph; its layers named."""
    from pocketfocus.quantize.onnx import name_layers

    with torch.no_grad():
        program = torch.onnx.export(
            student,
            next(iter(inputs)),
            input_names=list(INPUT_NAMES),
            output_names=[OUTPUT_NAME],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model: onnx.ModelProto = program.model_proto
    name_layers(model, student)
    return model


def strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces: they name files of the machine that converted."""
    graph = model.graph
    for entry in (model, graph, *graph.node, *graph.value_info, *graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]


def facts(model: onnx.ModelProto, recipe: Recipe, chosen: Mapping[str, Choice]) -> dict[str, Any]:
    """What is in the file: operators, bytes of weights by type, and how each layer is kept."""
    from pocketfocus.export.onnx.read import schemes
    from pocketfocus.quantize.onnx import TARGET as CHOSEN_BY
    from pocketfocus.quantize.plan import statement, summary

    weights: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        stored = len(tensor.raw_data) or onnx.numpy_helper.to_array(tensor).nbytes
        weights[onnx.TensorProto.DataType.Name(tensor.data_type)] += stored
    operators = Counter(node.op_type for node in model.graph.node)
    layers = schemes(model)
    return {
        "opset": next(o.version for o in model.opset_import if not o.domain),
        "operators": dict(sorted(operators.items())),
        "weight_bytes": dict(sorted(weights.items())),
        "linear_layers_at_4_bits": operators[FOUR_BIT],
        "note": f"{summary(layers)}; {NOTES[recipe.weight_bits]}",
        "layers": statement(recipe.asked(CHOSEN_BY, chosen), chosen, layers),
    }


def open_file(path: Path, threads: int | None = None) -> Runner:
    """A session on the CPU."""
    session = session_of(str(path), str(path), threads)

    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feed = dict(zip(names, (value.numpy() for value in inputs), strict=True))
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def session_of(model: str | bytes, name: str, threads: int | None = None) -> Any:
    """Onnxruntime's session of a file or of its content; UserError when there can be none."""
    reason = cannot_run()
    if reason is not None:
        raise UserError(f"{name} cannot be executed here: {reason}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # x86 without VNNI: the fast int8 kernels saturate sums at 16 bits, as no phone's do.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception types share no public base
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{name} is no ONNX file that loads ({line}): export it again") from error


def photo_size(path: Path) -> tuple[int, int]:
    """(H, W) of the photo that a file takes."""
    model = onnx.load(path, load_external_data=False)
    _, _, height, width = model.graph.input[0].type.tensor_type.shape.dim
    return int(height.dim_value), int(width.dim_value)


def cannot_run() -> str | None:
    """Why not: onnxruntime is missing."""
    try:
        with quiet():
            import_module("onnxruntime")
    except ImportError as error:
        return f"{error}; make setup installs onnxruntime"
    return None


def cannot_write() -> str | None:
    """Why not: a package is missing."""
    try:
        with quiet():
            import_module("onnxruntime.quantization")
            import_module("onnxscript")
    except ImportError as error:
        return f"{error}; make setup installs onnx, onnxscript and onnxruntime"
    return None


TARGET = Target(
    name="onnx",
    suffix=".onnx",
    write=write,
    open=open_file,
    photo_size=photo_size,
    cannot_run=cannot_run,
    cannot_write=cannot_write,
    refuses=never,
    runtime="onnxruntime",
)
