"""Core AI: .aimodel folders written, and executed by coreai-core."""

from __future__ import annotations

import asyncio
import json
import platform
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, fx

from pocketfocus.export.phases import MAKE, Phases
from pocketfocus.export.quiet import missing, quiet, quiet_native
from pocketfocus.export.targets import Runner, Written
from pocketfocus.run.errors import UserError, first_line

if TYPE_CHECKING:  # what executes a file needs none of these
    from torch.export import ExportedProgram

    from pocketfocus.export.network import Network
    from pocketfocus.quantize.recipes import Recipe

EXTRA = "coreai"
FIRST_MACOS = 27  # that has Core AI itself
AUTHOR = "pocketfocus"
UNDATED = "19700101T000000Z"
BLOB = re.compile(r"\bresource_\d+\b")  # as the compiler names a weight
NAMERS = ("coreai.authoring.graph_builder.choice", "coreai.authoring.func.choice")
ROUNDING = "quantized_decomposed"


def write(network: Network, recipe: Recipe, path: Path, phases: Phases) -> Written:
    """Round, capture, convert and save."""
    from pocketfocus.export.coreai.read import facts
    from pocketfocus.quantize.toolchains.coreai import choices, program

    with quiet():
        with phases(MAKE):
            module = network.make()
            schemes = {name: one.scheme for name, one in choices(recipe, module).items()}
        with phases("capture"):
            captured = program(module, schemes, network.calibration())
        with phases("convert"):
            made = converted(captured, network)
        with phases("save"):
            save(made, path)
            found = facts(path)
    return Written(found)


def converted(captured: ExportedProgram, network: Network) -> Any:
    """A Core AI program with the network's inputs and outputs."""
    from coreai_torch import TorchConverter, get_decomp_table

    # DEBUG, the default, would write stack traces with paths of this machine into the file.
    converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
    lower_rounding(converter)
    converter.add_exported_program(
        captured.run_decompositions(get_decomp_table()),
        input_names=[spec.name for spec in network.inputs],
        output_names=[spec.name for spec in network.outputs],
    )
    with repeatable_names():
        return converter.to_coreai()


@contextmanager
def repeatable_names() -> Iterator[None]:
    """Let names of graphs, which end in letters of `secrets.choice`, be the same every time."""
    choice = random.Random(0).choice
    one, other = NAMERS
    with patch(one, choice), patch(other, choice):
        yield


def save(made: Any, path: Path) -> None:
    """Write a program as an asset whose bytes are the same every time, on every day."""
    from coreai.runtime import AIModelAssetMetadata

    metadata = AIModelAssetMetadata()
    metadata.author = AUTHOR
    renamed(made).save_asset(path, metadata)
    about = path / "metadata.json"
    fields = json.loads(about.read_text(encoding="utf-8")) | {"creationDate": UNDATED}
    about.write_text(json.dumps(fields, indent=1, sort_keys=True), encoding="utf-8")


def renamed(made: Any) -> Any:
    """A program whose weights are numbered: their names are hashes with the process's own seed."""
    from coreai._compiler.ir import Module
    from coreai.authoring import AIProgram

    module = made._module._mlir_module
    text = module.operation.get_asm(enable_debug_info=True, large_elements_limit=None)
    numbers: dict[str, str] = {}
    text = BLOB.sub(lambda name: numbers.setdefault(name[0], f"weights_{len(numbers)}"), text)
    with module.context:
        return AIProgram._from_mlir_module(Module.parse(text))


def lower_rounding(converter: Any) -> None:
    """Teach a converter the three operators that torchao's PT2E leaves in a graph.

    A weight stays int8 in the file. Zero points of weights are zeros, and values between layers
    have one scale and zero point each, by XNNPACK's quantizer.
    """
    from coreai._compiler.dialects import coreai

    def scaling(node: fx.Node, loc: Any) -> list[Any]:
        scale, zero = node.args[1:3]
        numbers = np.array(scale, np.float32), np.array(zero, np.int8), np.array(0, np.float32)
        axis = np.array(0, np.int32)
        return [coreai.constant(value, loc=loc) for value in (*numbers, axis)]

    def quantize(values: dict[str, Any], node: fx.Node, loc: Any) -> Any:
        if node.args[3:] != (-128, 127, torch.int8):
            raise RuntimeError(f"values rounded to {node.args[3:]} are not known")
        return coreai.quantize(values[source(node)], *scaling(node, loc), loc=loc)

    def dequantize(values: dict[str, Any], node: fx.Node, loc: Any) -> Any:
        return coreai.dequantize(values[source(node)], *scaling(node, loc), loc=loc)

    def weight(values: dict[str, Any], node: fx.Node, loc: Any) -> Any:
        axis, whole = node.args[3], node.meta["val"].shape
        shape = [size if i == axis else 1 for i, size in enumerate(whole)]
        scale = coreai.reshape(values[str(node.args[1])], shape, loc=loc)
        zeros = (np.zeros(shape, kind) for kind in (np.int8, np.float32))
        none = [coreai.constant(value, loc=loc) for value in zeros]
        return coreai.blockwise_shift_scale(values[source(node)], scale, *none, loc=loc)

    for name, lowering in (
        ("quantize_per_tensor", quantize),
        ("dequantize_per_tensor", dequantize),
        ("dequantize_per_channel", weight),
    ):
        converter.register_torch_lowering(f"{ROUNDING}::{name}.default")(lowering)


def source(node: fx.Node) -> str:
    """The name of the value that an operator rounds, or takes back."""
    return str(node.args[0])


def open_file(path: Path, threads: int | None = None) -> Runner:
    """An asset by coreai-core: by Core AI itself where the system has it, on units and with
    `threads` of its choice, else by coreai-core's own interpreter. UserError for what is none."""
    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    from pocketfocus.export.coreai.read import MAIN, names

    loop = asyncio.new_event_loop()
    try:
        with quiet(), quiet_native():
            given, made = names(path)
            scope = AIModelAsset.load(path).executable()
            function = loop.run_until_complete(scope.__aenter__()).load_function(MAIN)
    except Exception as error:  # its exception types share no public base
        loop.close()
        line = first_line(error)
        raise UserError(f"{path} is no Core AI asset that loads ({line})") from error

    async def call(feeds: dict[str, Any], _: Any = scope) -> Any:  # which keeps the model loaded
        return await function(feeds)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = (NDArray(tensor.contiguous().numpy()) for tensor in inputs)
        found = loop.run_until_complete(call(dict(zip(given, arrays, strict=True))))
        return tuple(torch.from_numpy(np.array(found[name].numpy())) for name in made)

    return run


def cannot_run() -> str | None:
    """Why not: Core AI is part of macOS, of late."""
    version = platform.mac_ver()[0]
    if not version or int(version.partition(".")[0]) < FIRST_MACOS:
        system = f"macOS {version}" if version else platform.system()
        return f"Core AI is part of macOS {FIRST_MACOS} and later, this is {system}"
    return cannot_write()


cannot_write = partial(missing, "coreai_torch", "coreai.runtime", extra=EXTRA)
