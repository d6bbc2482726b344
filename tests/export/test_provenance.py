"""Where the nodes of a graph come from, shared rather than copied."""

from __future__ import annotations

import copy
import re

import torch
from torch.fx.traceback import NodeSource
from torch.fx.traceback import preserve_node_meta as preserved

from pocketfocus.export.provenance import shared_provenance


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + x).relu()


def history(program: torch.export.ExportedProgram) -> list[str]:
    nodes = program.run_decompositions({}).run_decompositions({}).graph.nodes
    told = [str(node.meta["from_node"]) for node in nodes if "from_node" in node.meta]
    return [re.sub(r"graph_id=\d+", "", line) for line in told]


def test_it_is_the_same_history_and_no_copy_of_it() -> None:
    with preserved():
        copied = history(torch.export.export(Doubled(), (torch.ones(2),)))
        with shared_provenance():
            shared = history(torch.export.export(Doubled(), (torch.ones(2),)))
    assert copied == shared and any("relu" in line for line in shared)
    source = NodeSource(None, "a pass")
    with shared_provenance():
        assert copy.deepcopy([source])[0] is source
    assert copy.deepcopy([source])[0] is not source
