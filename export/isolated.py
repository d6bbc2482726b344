"""A file in a process of its own, which holds the weights alone and says what it is at."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from pocketfocus.export.network import Network
from pocketfocus.export.phases import Phases
from pocketfocus.export.provenance import shared_provenance
from pocketfocus.export.quiet import quiet
from pocketfocus.export.targets import Target, Written, get_target
from pocketfocus.quantize.recipes import Recipe, recipe_from
from pocketfocus.run.child import Say
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import one_line
from pocketfocus.run.manifest import TensorSpec
from pocketfocus.run.memory import peak_mib, swapped_mib
from pocketfocus.run.processes import Work, WorkFailed, run_work
from pocketfocus.run.scratch import temporary_files_in

CALL = f"{__name__}:work"
WRITTEN = TypeAdapter(Written)


def write_isolated(
    network: Network, target: Target, recipe: Recipe, path: Path, check: Path, threads: int
) -> Written:
    """Write a file, and `check`: one call and what the network in fp32 makes of it.

    UserError, where the process died too.
    """
    name = f"{target.name}/{path.name}"
    arguments = {
        "name": name,
        "network": network.origin,
        "target": target.name,
        "recipe": recipe.model_dump(mode="json"),
        "path": str(path),
        "check": str(check),
        "threads": threads,
    }
    try:
        answer = run_work(
            Work(CALL, arguments), on_progress=partial(print, file=sys.stderr, flush=True)
        )
    except WorkFailed as error:
        raise UserError(
            f"{name} was not written: {error}; choose a smaller --size if memory was short"
        ) from error
    return WRITTEN.validate_python(answer.fields)


def work(
    arguments: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], say: Say
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Write the file, in the process: `Written` as JSON, with what writing it took."""
    torch.set_num_threads(arguments["threads"])
    with quiet():  # the imports too
        from pocketfocus.export.reference import reference_network

        network = reference_network(**arguments["network"])
    target, recipe = get_target(arguments["target"]), recipe_from(arguments["recipe"], "the work")
    phases = Phases(arguments["name"], target.phases, say)
    found: dict[str, Any] = {}
    path, check = Path(arguments["path"]), Path(arguments["check"])
    with one_line(path), temporary_files_in(path.parent), shared_provenance():
        written = target.write(checked(network, check, found), recipe, path, phases)
    costs = {
        "parameters": found["parameters"],
        "seconds": phases.seconds,
        "peak_mib": round(peak_mib()),
        "peak_mib_after": phases.peaks,
        "swapped_mib": round(swapped_mib()),
    }
    applied = written.applied | costs
    whole = Written(applied, written.delegation, found["inputs"], found["outputs"])
    return asdict(whole), {}


def checked(network: Network, path: Path, found: dict[str, Any]) -> Network:
    """The network, which, when it is made, writes its check and says in `found` what it is."""

    def make() -> nn.Module:
        assert network.check is not None
        given = network.check()  # what that needs is let go before the network is made
        module = network.make()
        with torch.no_grad():
            made = (module(*given),)
        tensors = {"input": given[0].contiguous(), "expected": made[0].contiguous()}
        save_file(tensors, path)
        found["parameters"] = sum(parameter.numel() for parameter in module.parameters())
        found["inputs"] = tuple(map(measured, network.inputs, given))
        found["outputs"] = tuple(map(measured, network.outputs, made))
        return module

    return replace(network, make=make)


def measured(spec: TensorSpec, example: Tensor) -> TensorSpec:
    """A tensor's own shape and range."""
    span = (round(float(example.min()), 3), round(float(example.max()), 3))
    return replace(spec, shape=tuple(example.shape), range=span)
