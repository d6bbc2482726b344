"""ExecuTorch: .pte files whose graph XNNPACK executes on the CPU of any phone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pocketfocus.export.quiet import quiet, quiet_native
from pocketfocus.export.targets import Runner, Target, Written, never
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Delegation

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from pocketfocus.models.student import RefocusStudent
    from pocketfocus.quantize.calibration import Calibration
    from pocketfocus.quantize.recipes import Recipe

METHOD = "forward"
NOTES = {
    16: "float16 arithmetic between casts, inputs and output stay float32",
    4: "what is no layer stays float32",
    8: "additions between layers int8; hardswish, and what no layer follows, float32",
    32: "float32 throughout",
}


def write(student: RefocusStudent, recipe: Recipe, inputs: Calibration, path: Path) -> Written:
    """Quantize, capture, lower to XNNPACK and save; then read what is in the file."""
    from pocketfocus.export.executorch.read import schemes
    from pocketfocus.quantize.executorch import TARGET as CHOSEN_BY
    from pocketfocus.quantize.executorch import capture, choices, quantized
    from pocketfocus.quantize.layers import execution_order
    from pocketfocus.quantize.plan import by_layer, statement, summary

    with quiet():
        order = execution_order(capture(student, inputs).graph)
        model, _ = quantized(student, recipe, inputs)
        delegation = lower(capture(model, inputs), path)
        layers = by_layer(order, schemes(path), "XNNPACK's graph")
    taken = {
        "backend": "XNNPACK",
        "linear_layers_at_4_bits": sum(scheme.bits == 4 for scheme in layers.values()),
        "note": f"{summary(layers)}; {NOTES[recipe.weight_bits]}",
        "layers": statement(recipe.asked(CHOSEN_BY, layers), choices(recipe, student), layers),
    }
    return Written(taken, delegation)


def lower(captured: ExportedProgram, path: Path) -> Delegation:
    """Write what XNNPACK makes of a captured graph."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(captured, partitioner=[XnnpackPartitioner()])
    del captured  # its weights are in `edge`
    delegation = delegated(edge.exported_program().graph_module)
    with path.open("wb") as handle:
        edge.to_executorch().write_to_file(handle)
    return delegation


def delegated(graph: torch.fx.GraphModule) -> Delegation:
    """What executorch.devtools says of a lowered graph, less the unpacking of its output."""
    from executorch.devtools.backend_debug import get_delegation_info

    info = get_delegation_info(graph)
    fallen_out = [
        operator
        for operator, counts in sorted(info.delegation_by_operator.items())
        for _ in range(counts.non_delegated)
        if operator != "getitem"  # picks the delegate's output, executes nothing
    ]
    total = info.num_delegated_nodes + len(fallen_out)
    return Delegation(
        calls=info.num_delegated_subgraphs,
        delegated_ops=info.num_delegated_nodes,
        total_ops=total,
        share=round(info.num_delegated_nodes / total, 4) if total else 0.0,
        fallen_out=tuple(fallen_out),
    )


def open_file(path: Path, threads: int | None = None) -> Runner:
    """Load a .pte into the runtime; its thread pool is one for the whole process."""
    reason = cannot_run()
    if reason is not None:
        raise UserError(f"{path} cannot be executed here: {reason}")
    module = load(path, threads)
    mute: Iterator[Any] = chain([quiet_native()], repeat(nullcontext()))  # XNNPACK's first words

    def run(*inputs: Tensor) -> Tensor:
        with next(mute):
            given = [value.contiguous() for value in inputs]
            outputs: Any = module.forward(given, clone_outputs=False)
        stack: Tensor = outputs[0].clone()  # the runtime writes the next output into its memory
        return stack

    return run


def load(path: Path, threads: int | None = None) -> Any:
    """The runtime's module of a .pte.

    Through the bindings below `executorch.runtime`, which imports the whole exporter with it (5 s
    and 130 MiB more, measured with executorch 1.4.1): neither belongs in a latency table.
    """
    from executorch.extension.pybindings import _portable_lib

    try:
        with quiet_native():
            if threads is not None:
                _portable_lib._unsafe_reset_threadpool(threads)
            module = _portable_lib._load_for_executorch(str(path))
            module.method_meta(METHOD)  # it reads the file only when first asked something
            return module
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} is no ExecuTorch file that loads ({reason}): export it again"
        ) from error


def photo_size(path: Path) -> tuple[int, int]:
    """(H, W) of the photo that a file takes."""
    _, _, height, width = load(path).method_meta(METHOD).input_tensor_meta(0).sizes()
    return int(height), int(width)


def cannot_run() -> str | None:
    """Why not: the runtime's Python bindings, or XNNPACK in them, are missing."""
    try:
        with quiet():
            from executorch.extension.pybindings import _portable_lib

            available = _portable_lib._is_available("XnnpackBackend")
    except ImportError as error:
        return f"the ExecuTorch runtime does not load ({error}); make setup installs it"
    return None if available else "this build of executorch comes without XNNPACK"


def cannot_write() -> str | None:
    """Why not: a package is missing."""
    try:
        with quiet():
            import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
            import_module("torchao.quantization.pt2e.quantize_pt2e")
    except ImportError as error:
        return f"{error}; make setup installs executorch and torchao"
    return None


TARGET = Target(
    name="executorch",
    suffix=".pte",
    write=write,
    open=open_file,
    photo_size=photo_size,
    cannot_run=cannot_run,
    cannot_write=cannot_write,
    refuses=never,
    runtime="executorch",
)
