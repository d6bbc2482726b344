"""ExecuTorch: .pte files written, and loaded by the runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module, metadata
from itertools import chain, repeat
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pocketfocus.export.network import functions_of
from pocketfocus.export.phases import MAKE, Phases
from pocketfocus.export.quiet import AGAIN, loading, missing, quiet, quiet_native
from pocketfocus.export.targets import Runner, Sizes, Written
from pocketfocus.run.manifest import Compatibility, Delegation

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from pocketfocus.export.network import Network
    from pocketfocus.quantize.recipes import Recipe

METHOD = "forward"
BINDINGS = "executorch.extension.pybindings._portable_lib"


def write(network: Network, recipe: Recipe, path: Path, phases: Phases) -> Written:
    """Quantize, capture, lower to XNNPACK and save.

    Layers at 4 bits are counted in the file, or as planned where the network is `isolated`.
    """
    from pocketfocus.export.executorch.read import schemes
    from pocketfocus.quantize.layers import capture
    from pocketfocus.quantize.toolchains.executorch import quantized

    with quiet():
        with phases(MAKE):
            held: list[Any] = [network.make()]  # taken out by who needs it, who alone holds it
            calls = network.calibration()
        with phases("quantize"):
            model, four_bit = quantized(held.pop(), recipe, calls, network.free_sides)
        with phases("capture"):
            # XNNPACK takes no graph whose sizes are free (executorch 1.4.1: dependency cycles).
            methods = network.functions(METHOD).items()
            held.append({name: capture(model, one.calibration()) for name, one in methods})
        del model
        with phases("lower"), full_disk():
            delegation = lower(held.pop(), path)
        if not network.isolated:
            four_bit = sum(scheme.bits == 4 for scheme, _ in schemes(path))
    applied = {"backend": "XNNPACK", "linear_layers_at_4_bits": four_bit}
    return Written(applied, delegation, functions=functions_of(network, METHOD))


def lower(captured: dict[str, ExportedProgram], path: Path) -> Delegation:
    """Write what XNNPACK makes of captured graphs, a method each; of which it took least."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.utils.configs import get_xnnpack_edge_compile_config
    from executorch.exir import to_edge_transform_and_lower

    names = list(captured)
    partitioner = {name: [XnnpackPartitioner()] for name in names}
    # Types are not checked after every pass, which took a sixth of the time: gates judge files.
    config = get_xnnpack_edge_compile_config()
    edge = to_edge_transform_and_lower(captured, partitioner=partitioner, compile_config=config)
    del captured  # its weights are in `edge`
    found = [delegated(edge.exported_program(name).graph_module) for name in names]
    with path.open("wb") as handle:
        edge.to_executorch().write_to_file(handle)
    return min(found, key=lambda delegation: delegation.share)


@contextmanager
def full_disk() -> Iterator[None]:
    """Make an OSError of how flatc ends, which says no more, when it cannot write its files."""
    try:
        yield
    except CalledProcessError as error:
        raise OSError("flatc could not write its files (a full disk)") from error


def delegated(graph: torch.fx.GraphModule) -> Delegation:
    """What executorch.devtools says of a lowered graph, less the unpacking of its output."""
    from executorch.devtools.backend_debug import get_delegation_info

    info = get_delegation_info(graph)
    not_delegated = [
        operator
        for operator, counts in sorted(info.delegation_by_operator.items())
        for _ in range(counts.non_delegated)
        if operator != "getitem"  # picks the delegate's output, executes nothing
    ]
    total = info.num_delegated_nodes + len(not_delegated)
    return Delegation(
        calls=info.num_delegated_subgraphs,
        delegated_ops=info.num_delegated_nodes,
        total_ops=total,
        share=round(info.num_delegated_nodes / total, 4) if total else 0.0,
        not_delegated=tuple(not_delegated),
    )


def open_file(path: Path, threads: int | None = None) -> Runner:
    """Load a .pte into the runtime; its thread pool is one for the whole process."""
    run = lend_file(path, threads)
    return lambda *inputs: tuple(tensor.clone() for tensor in run(*inputs))


def lend_file(path: Path, threads: int | None = None) -> Runner:
    """Load a .pte; what a call gives is the runtime's own memory, which the next one overwrites."""
    module = load(path, threads)
    names = methods_of(module)
    mute: Iterator[Any] = chain([quiet_native()], repeat(nullcontext()))  # XNNPACK's first words

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        name = names.get(tuple(inputs[0].shape), METHOD)  # which says what it takes
        with next(mute):
            given = [tensor.contiguous() for tensor in inputs]
            outputs: Any = module.run_method(name, given, clone_outputs=False)
        return tuple(outputs)

    return run


def load(path: Path, threads: int | None = None) -> Any:
    """The runtime's module of a .pte.

    Through the bindings below `executorch.runtime`, which imports the whole exporter with it (5 s
    and 130 MiB more, measured with executorch 1.4.1): neither belongs in a latency table.
    """
    from executorch.extension.pybindings import _portable_lib

    with loading(path, "ExecuTorch file", AGAIN), quiet_native():
        if threads is not None:
            _portable_lib._unsafe_reset_threadpool(threads)
        module = _portable_lib._load_for_executorch(str(path))
        module.method_meta(METHOD)  # it reads the file only when first asked something
        return module


def methods_of(module: Any) -> dict[tuple[int, ...], str]:
    """The methods of a file by the shape of the first input that they take."""
    found = {}
    for name in sorted(module.method_names()):
        about = module.method_meta(name)
        if about.num_inputs():
            found[tuple(about.input_tensor_meta(0).sizes())] = name
    return found


def sizes(path: Path) -> Sizes:
    """See `Target.sizes`."""
    found = {name: shape for shape, name in methods_of(load(path)).items()}
    main = found.pop(METHOD)
    return Sizes(tuple((shape[-2], shape[-1]) for shape in (main, *found.values())))


def input_shapes(path: Path) -> list[tuple[int, ...]]:
    """The shapes of the inputs of a file's usual method, in order."""
    about = load(path).method_meta(METHOD)
    return [tuple(about.input_tensor_meta(n).sizes()) for n in range(about.num_inputs())]


def cannot_run() -> str | None:
    """Why not: the runtime's Python bindings, or XNNPACK in them, are missing."""
    reason = missing(BINDINGS)
    if reason is None and not import_module(BINDINGS)._is_available("XnnpackBackend"):
        return "this build of executorch comes without XNNPACK"
    return reason


def compatibility(applied: Mapping[str, object]) -> Compatibility:
    """See `Target.compatibility`."""
    major, minor = metadata.version("executorch").split(".")[:2]
    return Compatibility(
        must=f"ExecuTorch {major}.{minor} and the release after it, with XNNPACK",
        may="later releases",
        cannot="nothing is promised of earlier ones, which may misread it",
        source="https://github.com/pytorch/executorch/blob/main/runtime/COMPATIBILITY.md",
    )


cannot_write = partial(
    missing,
    "executorch.backends.xnnpack.partition.xnnpack_partitioner",
    "torchao.quantization.pt2e.quantize_pt2e",
)
