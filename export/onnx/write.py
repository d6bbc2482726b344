"""ONNX: .onnx files written, and loaded by onnxruntime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn

from pocketfocus.export.phases import MAKE, Phases
from pocketfocus.export.quiet import AGAIN, loading, missing, quiet
from pocketfocus.export.targets import Runner, Sizes, Written
from pocketfocus.run.constants import size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Compatibility

if TYPE_CHECKING:
    from pocketfocus.export.network import Network
    from pocketfocus.quantize.recipes import Recipe

OPSET, OLDEST = 20, "1.18"  # of files without 4-bit weights, and the first onnxruntime for it
OLDEST_OF_4_BITS = "1.20"
MULTIPLE, SIZE = "pocketfocus.multiple", "pocketfocus.size"  # properties of a model of free sizes


def write(network: Network, recipe: Recipe, path: Path, phases: Phases) -> Written:
    """Capture, convert, quantize, check and save as one self-contained file."""
    from pocketfocus.quantize.toolchains.onnx import choices, quantized

    with quiet():
        with phases(MAKE):
            module = network.make()
            schemes = {name: one.scheme for name, one in choices(recipe, module).items()}
        with phases("convert"):
            model = converted(module, network)
        with phases("quantize"):
            model = quantized(model, schemes, network.calibration())
            strip(model)
            describe(model, network)
            onnx.checker.check_model(model, full_check=True)
            onnx.save(model, path)
    return Written(facts(onnx.load(path)), multiple=network.free_sides)


def converted(module: nn.Module, network: Network) -> onnx.ModelProto:
    """The float32 model, by PyTorch's exporter from its own captured graph; its layers named.

    Where the network is for photos of several sizes, the model takes all whose sides are multiples:
    onnxruntime computes it as fast as one of a single size.
    """
    from pocketfocus.quantize.layers import sides
    from pocketfocus.quantize.toolchains.onnx import name_layers

    example = network.calibration()[0]
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            dynamic_shapes=sides(example, network.free_sides),
            input_names=[spec.name for spec in network.inputs],
            output_names=[spec.name for spec in network.outputs],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model: onnx.ModelProto = program.model_proto
    name_layers(model, module)
    return model


def strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces: they name files of the machine that converted."""
    graph = model.graph
    for entry in (model, graph, *graph.node, *graph.value_info, *graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]


def describe(model: onnx.ModelProto, network: Network) -> None:
    """Write into a model of free sizes what photos it takes: the file is then enough by itself."""
    if network.free_sides:
        about = {MULTIPLE: network.multiple, SIZE: size_text(network.size)}
        onnx.helper.set_model_props(model, {name: str(value) for name, value in about.items()})


def facts(model: onnx.ModelProto) -> dict[str, Any]:
    """What is in a file: its operators, and the bytes of its weights by type."""
    from pocketfocus.quantize.toolchains.onnx import FOUR_BIT

    weights: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        stored = len(tensor.raw_data) or onnx.numpy_helper.to_array(tensor).nbytes
        weights[onnx.TensorProto.DataType.Name(tensor.data_type)] += stored
    operators = Counter(node.op_type for node in model.graph.node)
    return {
        "opset": next(o.version for o in model.opset_import if not o.domain),
        "operators": dict(sorted(operators.items())),
        "weight_bytes": dict(sorted(weights.items())),
        "linear_layers_at_4_bits": operators[FOUR_BIT],
    }


def compatibility(applied: Mapping[str, Any]) -> Compatibility:
    """See `Target.compatibility`; both versions were tried, and those before them."""
    opset = applied.get("opset", OPSET)
    oldest = OLDEST if opset <= OPSET else OLDEST_OF_4_BITS
    return Compatibility(
        must=f"onnxruntime {oldest} and later, also onnxruntime-web and on phones",
        may=f"other runtimes that implement opset {opset}",
        cannot=f"onnxruntime before {oldest}",
        source="https://onnxruntime.ai/docs/reference/compatibility.html",
    )


def open_file(path: Path, threads: int | None = None) -> Runner:
    """A session on the CPU."""
    session = session_of(str(path), str(path), threads)
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = session.run(None, dict(zip(names, map(Tensor.numpy, inputs), strict=True)))
        return tuple(map(torch.from_numpy, found))

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
    with loading(name, "ONNX file", AGAIN):
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def sizes(path: Path) -> Sizes:
    """See `Target.sizes`."""
    model = parsed(path)
    shape, *_ = shapes_in(model)
    return Sizes(((shape[-2], shape[-1]),), int(properties(model).get(MULTIPLE, 0)))


def input_shapes(path: Path) -> list[tuple[int, ...]]:
    """The shapes of a file's inputs, in order; free sides are the usual ones."""
    return shapes_in(parsed(path))


def shapes_in(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    """The shapes of a model's inputs, as of `input_shapes`."""
    shapes = [tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input]
    width, _, height = properties(model).get(SIZE, "").partition("x")
    if height:
        shapes[0] = (*shapes[0][:-2], int(height), int(width))
    return shapes


def parsed(path: Path) -> onnx.ModelProto:
    """A model without weights that lie beside it; UserError for what is none."""
    with loading(path, "ONNX file", AGAIN):
        return onnx.load(path, load_external_data=False)


def properties(model: onnx.ModelProto) -> dict[str, str]:
    """What a model says of itself."""
    return {entry.key: entry.value for entry in model.metadata_props}


cannot_run = partial(missing, "onnxruntime")
cannot_write = partial(missing, "onnxruntime.quantization", "onnxscript")
