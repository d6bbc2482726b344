"""What may go badly with a `.pte` file, as its program and XNNPACK's graphs in it say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketfocus.export.executorch.read import graphs, usual, values_of
from pocketfocus.export.targets import Advice
from pocketfocus.run.errors import UserError

ADRENO = range(168, 193)
"""Channels of a convolution's output at which Vulkan on Adreno gives other values at each call."""
CONVOLUTIONS = ("XNNConv2d", "XNNConvTranspose2d")
PAD = "constant_pad_nd"
GPU = "VulkanBackend"
ISSUES = "https://github.com/pytorch/executorch/issues"
DELEGATION = "https://docs.pytorch.org/executorch/stable/debug-backend-delegate.html"


def lint(path: Path) -> list[Advice]:
    """See `Target.lint`."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    try:
        plan = usual(deserialize_pte_binary(path.read_bytes()).program)
    except Exception as error:  # its parsers raise whatever they meet
        raise UserError(
            f"{path} is no ExecuTorch program of one method ({error}): export it again"
        ) from error
    instructions = [each.instr_args for each in plan.chains[0].instructions]
    return [*_outside(plan, instructions), *_on_gpus(plan), *_channels(path)]


def _outside(plan: Any, instructions: list[Any]) -> Iterator[Advice]:
    """Say what no delegate executes, and how often the program goes to and fro."""
    kernels = (getattr(each, "op_index", None) for each in instructions)
    names = Counter(plan.operators[index].name for index in kernels if index is not None)
    calls = sum(hasattr(each, "delegate_index") for each in instructions)
    if names:
        listed = ", ".join(f"{count} {name}" for name, count in names.most_common())
        yield Advice(
            "not-delegated", "warning", f"{sum(names.values())} operators",
            f"portable kernels execute {listed}: on one thread, many times slower",
            "replace these operators in the network, or leave them to the app", DELEGATION,
        )  # fmt: skip
    if any(PAD in name for name in names):
        yield Advice(
            "padding-same", "warning", PAD,
            "a pad was cut off from its convolution, as of padding='same': quantized, such files "
            "have failed when they were first called",
            "give convolutions a symmetric padding in numbers", f"{ISSUES}/20517",
        )  # fmt: skip
    if calls > 1:
        yield Advice(
            "several-calls", "note", f"{calls} delegate calls",
            "values are copied and laid out anew between them",
            "see what lies between: `not-delegated` names it", DELEGATION,
        )  # fmt: skip


def _on_gpus(plan: Any) -> Iterator[Advice]:
    if any(delegate.id == GPU for delegate in plan.delegates):
        yield Advice(
            "gpu-delegate", "warning", GPU,
            "results differ from call to call on some Adreno GPUs, and are not finite on some Mali",
            "call a canary repeatedly on each device, and fall back to XNNPACK",
            f"{ISSUES}/21939",
        )  # fmt: skip


def _channels(path: Path) -> Iterator[Advice]:
    found = Counter[int]()
    for graph in graphs(path):
        values = values_of(graph)
        for node in graph["xnodes"]:
            if node["xnode_union_type"] in CONVOLUTIONS:
                tensor, _ = values[node["xnode_union"]["output_id"]]
                found[tensor["dims"][-1]] += 1
    band = {channels: count for channels, count in found.items() if channels in ADRENO}
    if band:
        listed = ", ".join(f"{count} of {channels}" for channels, count in sorted(band.items()))
        yield Advice(
            "adreno-channels", "note", f"convolutions to {listed} channels",
            "lowered to Vulkan, these give other values at each call on Adreno GPUs; XNNPACK's, "
            "which this file has, do not",
            "keep to XNNPACK, or choose widths outside 168 to 192", f"{ISSUES}/21938",
        )  # fmt: skip
