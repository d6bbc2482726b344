"""What a process brings back of a runtime that lends its memory."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch
from torch import Tensor

from pocketfocus.export.targets import Runner
from pocketfocus.mobile_harness.device import Job
from pocketfocus.mobile_harness.worker import measure


@pytest.mark.parametrize("runs", [0, 5])
def test_outputs_are_kept_of_a_runtime_that_overwrites_them(runs: int) -> None:
    table = np.arange(3, dtype=np.float32).reshape(3, 1)
    memory, calls = torch.empty(1), count()

    def opener(artifact: str, threads: int) -> Runner:
        def run(given: Tensor) -> tuple[Tensor]:
            next(calls)
            torch.mul(given, 10, out=memory)
            return (memory,)

        return run

    job = Job("file", "executorch", (table,), ((2,), (0,), (1,)), 1, runs, want_outputs=True)
    fields, outputs = measure(opener, job)
    assert outputs["0"].tolist() == [[20.0], [0.0], [10.0]]
    assert len(fields["times_ms"]) == runs and next(calls) == 1 + 1 + runs + 2
