"""Write one file of a network: fold, quantize, capture, lower or convert, save."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pocketfocus.export.full.parts import (
    PARTS,
    Calls,
    Part,
    calibration_stacks,
    check_size,
    check_stack,
    open_reference,
)
from pocketfocus.export.full.phases import Phases
from pocketfocus.export.quiet import quiet
from pocketfocus.export.targets import Written
from pocketfocus.quantize.recipes import Recipe, recipe_from
from pocketfocus.run.manifest import TensorSpec
from pocketfocus.run.memory import peak_mib, swapped_mib

SHARES = {
    "executorch": {"read and fold": 0.05, "quantize": 0.1, "capture": 0.05, "lower": 0.8},
    "coreml": {"read and fold": 0.05, "capture": 0.15, "convert": 0.5, "compress": 0.3},
}


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Write one file: what is in it, and what writing it took."""
    torch.set_num_threads(job["threads"])
    part, recipe = PARTS[job["part"]], recipe_from(job["recipe"], "the job")
    size = (job["size"][0], job["size"][1])
    phases = Phases(job["name"], SHARES[job["target"]], say)
    with phases("read and fold"), torch.no_grad():
        reference = open_reference(job["reference"])
        check_size(reference, size)
        calls = part.inputs(reference, [check_stack(size), *calibration_stacks(size)])
        network = part.make(reference)
        parameters = sum(p.numel() for p in network.parameters())
        expected = network(*calls[0])
        check = {"input": calls[0][0], "expected": expected}
        save_file({name: t.contiguous() for name, t in check.items()}, job["check"])
    del reference
    write = {"executorch": write_executorch, "coreml": write_coreml}[job["target"]]
    box = [network]  # taken out by the writer, which alone then holds the weights
    del network
    written = write(box, part, recipe, calls, phases, Path(job["path"]))
    return {
        "inputs": [asdict(spec(part.input, calls[0][0]))],
        "outputs": [asdict(spec(part.output, expected))],
        "parameters": parameters,
        "taken": written.taken,
        "delegation": asdict(written.delegation) if written.delegation else None,
        "seconds": phases.seconds,
        "peak_mib_after": phases.peaks,
        "peak_mib": round(peak_mib()),
        "swapped_mib": round(swapped_mib()),
    }


def write_executorch(
    box: list[nn.Module], part: Part, recipe: Recipe, calls: Calls, phases: Phases, path: Path
) -> Written:
    """Quantize with the calls after the first, capture, lower to XNNPACK and save."""
    from pocketfocus.export.executorch.write import NOTES, lower
    from pocketfocus.quantize.executorch import capture, quantized_in_place

    with quiet():
        with phases("quantize"):
            model, four_bit = quantized_in_place(box.pop(), recipe, calls[1:])
        with phases("capture"):
            captured = [capture(model, calls)]
        del model
        with phases("lower"):
            delegation = lower(captured.pop(), path)
    taken = {
        "backend": "XNNPACK",
        "linear_layers_at_4_bits": four_bit,
        "note": NOTES[recipe.weight_bits],
    }
    return Written(taken, delegation)


def write_coreml(
    box: list[nn.Module], part: Part, recipe: Recipe, calls: Calls, phases: Phases, path: Path
) -> Written:
    """Capture, convert, compress and save."""
    from pocketfocus.export.coreml.read import schemes
    from pocketfocus.export.coreml.write import NOTES, converted, facts, save
    from pocketfocus.quantize.coreml import CONVOLUTIONS, compressed, config_of, program, uniform

    with quiet():
        with phases("capture"):
            captured = [program(box.pop(), recipe, calls)]
        with phases("convert"):
            inputs = [spec(part.input, calls[0][0])]
            model = converted(captured.pop(), recipe, inputs, part.output)
        with phases("compress"):
            if recipe.weight_bits == 4:
                convolutions = {name: config_of(kind) for name, kind in CONVOLUTIONS.items()}
                model = compressed(model, {}, config_of(uniform(recipe)), convolutions)
            save(model, path)
    taken = facts(model.get_spec(), [scheme for scheme, _ in schemes(path)], recipe)
    return Written({**taken, "note": NOTES[recipe.weight_bits]})


def spec(name: str, example: Tensor) -> TensorSpec:
    """A tensor's shape and the range of the example."""
    span = (round(float(example.min()), 3), round(float(example.max()), 3))
    return TensorSpec(name, tuple(example.shape), "float32", span)


def say(line: str) -> None:
    """A line of progress, also while `quiet` holds back what the toolchains print."""
    print(line, file=sys.__stderr__, flush=True)
