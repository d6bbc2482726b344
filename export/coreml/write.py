"""Core ML: .mlpackage folders written, and loaded by coremltools on macOS."""

from __future__ import annotations

import json
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import torch
from torch import Tensor

from pocketfocus.export.network import functions_of
from pocketfocus.export.phases import MAKE, Phases
from pocketfocus.export.quiet import loading, missing, quiet
from pocketfocus.export.targets import Runner, Sizes, Written
from pocketfocus.run.manifest import Compatibility
from pocketfocus.run.scratch import temporary_folder

if TYPE_CHECKING:  # what executes a file needs none of these
    from torch.export import ExportedProgram

    from pocketfocus.export.network import Network
    from pocketfocus.quantize.recipes import Recipe, Scheme
    from pocketfocus.quantize.toolchains.coreml import Compression

DEBUG_TABLE = "executorch_debug_handle_mapping.json"
DATE = "com.github.apple.coremltools.conversion_date"
MAIN = "main"
USUAL_IOS = 18  # unless a recipe asks for another
FUNCTIONS_IOS = 18  # the first that has several functions in a package
FAILED = ("[MIL FileWriter]", "filesystem error")  # its RuntimeErrors when the disk is full


def write(network: Network, recipe: Recipe, path: Path, phases: Phases) -> Written:
    """Capture, convert, compress and save.

    Weights are compressed layer by layer, or those of an `isolated` network by their operators.
    """
    from pocketfocus.export.coreml.read import schemes
    from pocketfocus.quantize.layers import layers_of
    from pocketfocus.quantize.toolchains.coreml import (
        by_operator,
        choices,
        clip,
        compressed,
        kernel_area,
        programs,
    )

    with quiet(), full_disk(), own_names():
        with phases(MAKE):
            held: list[Any] = [network.make()]  # taken out by who needs it, who alone holds it
            chosen = choices(recipe, held[0])
            kernels = {name: kernel_area(layer) for name, layer in layers_of(held[0]).items()}
        with phases("capture"):
            wanted = {name: choice.scheme for name, choice in chosen.items()}
            if not network.isolated:
                clip(held[0], wanted)
            several = recipe.ios >= FUNCTIONS_IOS
            networks = network.functions(MAIN) if several else {MAIN: network}
            sizes = [one.calibration() for one in networks.values()]
            multiple = network.multiple if len(sizes) > 1 else 0
            held += reversed(programs(held.pop(), wanted, sizes, multiple))
        models = {}
        with phases("convert"):
            for name, one in networks.items():
                models[name] = converted(held.pop(), recipe, one)
        with phases("compress"):
            how = by_operator(recipe)
            for name, model in models.items():
                if not network.isolated:
                    how = by_name(model, network, wanted, kernels)
                models[name] = compressed(model, how)
            save_all(models, path)
            found = [scheme for scheme, _ in schemes(path)]
    functions = functions_of(network, MAIN) if several else ()
    return Written(facts(models[MAIN].get_spec(), found, recipe), functions=functions)


def by_name(
    model: Any, network: Network, schemes: Mapping[str, Scheme], kernels: Mapping[str, int]
) -> Compression:
    """How each weight of a program is to be compressed, of the schemes and kernels of layers."""
    from pocketfocus.export.coreml.read import weight_names
    from pocketfocus.quantize.plan import matched
    from pocketfocus.quantize.toolchains.coreml import Compression, config_of

    weights = weight_names(model)
    layers = matched(network.order, [count for _, count in weights], "the program")
    return Compression(
        {
            weight: config_of(schemes[layer], kernels[layer])
            for layer, (weight, _) in zip(layers, weights, strict=True)
            if layer
        }
    )


def label(scheme: Scheme) -> str:
    """A compressed weight in two words."""
    return (
        f"{scheme.bits}-bit palettes" if scheme.form == "palette" else f"int{scheme.bits} weights"
    )


def save_all(models: Mapping[str, Any], path: Path) -> None:
    """Write models as the functions of one package, which share weights; one alone as it is."""
    import coremltools as ct

    if len(models) == 1:
        save(models[MAIN], path)
        settle(path)
        return
    together = ct.utils.MultiFunctionDescriptor()
    with temporary_folder("coreml") as scratch:
        for name, model in models.items():
            part = scratch / f"{name}.mlpackage"
            save(model, part)
            together.add_function(str(part), MAIN, name)
        together.default_function_name = MAIN
        ct.utils.save_multifunction(together, str(path))
    settle(path)


def save(model: Any, path: Path) -> None:
    """Write a model.

    coremltools leaves a table for ExecuTorch's debugger in packages of captured graphs: as large as
    the program itself, and nothing reads it here.
    """
    model.save(str(path))
    (path / DEBUG_TABLE).unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Make a package the same bytes whenever it is written: items are known by their paths, not by
    random numbers, the program keeps no date, and its maps are in order."""
    from coremltools.models.utils import load_spec

    manifest = path / "Manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    items = content["itemInfoEntries"]
    names = {name: str(uuid5(NAMESPACE_URL, item["path"])) for name, item in items.items()}
    entries = sorted((names[name], item) for name, item in items.items())
    root = content["rootModelIdentifier"]
    content |= {"itemInfoEntries": dict(entries), "rootModelIdentifier": names[root]}
    manifest.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    spec = load_spec(str(path))
    spec.description.metadata.userDefined.pop(DATE, None)
    program = path / "Data" / items[root]["path"]
    program.write_bytes(spec.SerializeToString(deterministic=True))


@contextmanager
def own_names() -> Iterator[None]:
    """Let coremltools count the names that it makes up from 0, as in a fresh process.

    They are in the file, and it goes on counting from whatever was built, loaded or not converted
    to the end before.
    """
    from coremltools.converters.mil import Builder

    with patch.object(Builder, "name_count", defaultdict(int)):
        yield


@contextmanager
def full_disk() -> Iterator[None]:
    """Make an OSError of what coremltools raises when the disk is full, converting or saving."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(FAILED):
            raise
        raise OSError(f"{error} (a full disk)") from error


def converted(captured: ExportedProgram, recipe: Recipe, network: Network) -> Any:
    """An ML program with the network's inputs and outputs in float32."""
    import coremltools as ct

    precision = ct.precision.FLOAT32 if recipe.weight_bits == 32 else ct.precision.FLOAT16
    passes = ct.PassPipeline()  # numbers of any size are kept once, not those of 100 elements alone
    passes.set_options("common::const_deduplication", {"const_threshold": 1})
    return ct.convert(
        captured,
        inputs=[
            ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.float32)
            for spec in network.inputs
        ],
        outputs=[ct.TensorType(name=spec.name, dtype=np.float32) for spec in network.outputs],
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


def compatibility(applied: Mapping[str, Any]) -> Compatibility:
    """See `Target.compatibility`."""
    ios = int(applied.get("deployment_target", f"iOS{USUAL_IOS}").removeprefix("iOS"))
    systems = f"iOS {ios}, macOS {ios - 3}, tvOS {ios}, watchOS {ios - 7}"
    return Compatibility(
        must=f"{systems} and later",
        may="none but these",
        cannot="earlier systems, which end with an unknown opset",
        source="https://apple.github.io/coremltools/docs-guides/source/target-conversion-formats.html",
    )


def open_file(path: Path, threads: int | None = None) -> Runner:
    """A model on all compute units; Core ML chooses its own `threads`."""
    import coremltools as ct

    def loaded(name: str | None) -> Any:
        with loading(path, "Core ML package"), quiet():
            units = ct.ComputeUnit.ALL
            return ct.models.MLModel(str(path), compute_units=units, function_name=name)

    names = {shapes[0]: name for name, shapes in functions(path).items()}
    models = {MAIN: loaded(MAIN if len(names) > 1 else None)}
    given, made = tensors(path)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        name = names.get(tuple(inputs[0].shape), MAIN)  # which says what it takes
        if name not in models:
            models[name] = loaded(name)
        found = models[name].predict(dict(zip(given, map(Tensor.numpy, inputs), strict=True)))
        return tuple(torch.from_numpy(np.asarray(found[name], np.float32)) for name in made)

    return run


def input_shapes(path: Path) -> list[tuple[int, ...]]:
    """The shapes of the inputs of a file's usual function, in order."""
    return functions(path)[MAIN]


def sizes(path: Path) -> Sizes:
    """See `Target.sizes`."""
    photos = [photo for photo, *_ in functions(path).values()]
    return Sizes(tuple((photo[-2], photo[-1]) for photo in photos))


def functions(path: Path) -> dict[str, list[tuple[int, ...]]]:
    """The functions of a package, the usual one first: the shapes of the inputs of each."""
    from coremltools.models.utils import load_spec

    about = load_spec(str(path)).description
    found = {each.name: each.input for each in about.functions} or {MAIN: about.input}
    names = sorted(found, key=lambda name: (name != MAIN, name))
    return {
        name: [tuple(value.type.multiArrayType.shape) for value in found[name]] for name in names
    }


def tensors(path: Path) -> tuple[list[str], list[str]]:
    """The names of the inputs and outputs of a package's usual function."""
    from coremltools.models.utils import load_spec

    whole = load_spec(str(path)).description
    about = next((each for each in whole.functions if each.name == MAIN), whole)
    given, made = ([value.name for value in found] for found in (about.input, about.output))
    return given, made


def cannot_run() -> str | None:
    """Why not: Core ML predicts on macOS only."""
    system = platform.system()
    if system != "Darwin":
        return f"Core ML predicts on macOS only, this is {system}"
    return cannot_write()


cannot_write = partial(missing, "coremltools")
