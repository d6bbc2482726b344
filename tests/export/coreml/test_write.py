"""Core ML packages of the same model: the same bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder
from coremltools.models.utils import load_spec

from pocketfocus.export.coreml import TARGET
from pocketfocus.export.coreml.write import MAIN, save_all
from pocketfocus.export.network import Network
from pocketfocus.export.phases import Phases
from pocketfocus.quantize.recipes import get_recipe
from pocketfocus.run.files import sha256
from pocketfocus.run.manifest import TensorSpec


def test_a_package_is_the_same_bytes_whenever_it_is_written(tmp_path: Path) -> None:
    @Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS18)
    def program(x):  # type: ignore[no-untyped-def]
        return Builder.add(x=x, y=np.arange(1000, dtype=np.float32).reshape(250, 4))

    found = []
    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    for day in ("2026-01-01", "2026-01-02"):
        model.user_defined_metadata["com.github.apple.coremltools.conversion_date"] = day
        for count in (1, 2):
            path = tmp_path / f"{day}-{count}.mlpackage"
            save_all(dict(list({MAIN: model, "other": model}.items())[:count]), path)
            found.append(sha256(path))
            spec = load_spec(str(path))
            root = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
            assert root.read_bytes() == spec.SerializeToString(deterministic=True)
            manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
            assert manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"].endswith(
                "/model.mlmodel"
            )
    assert found[:2] == found[2:]


def pooling(height: int) -> Network:
    """A network without weights, for photos of some height."""
    photo = torch.zeros(1, 3, height, 8)
    given = TensorSpec("photo", (1, 3, height, 8), "float32", (-1.0, 1.0))
    made = TensorSpec("small", (1, 3, height // 2, 4), "float32", (-1.0, 1.0))
    calls: list[tuple[torch.Tensor, ...]] = [(photo,)]
    return Network("pooling", lambda: torch.nn.AvgPool2d(2), (given,), (made,), lambda: calls)


def test_a_package_is_the_same_bytes_whatever_was_built_before(tmp_path: Path) -> None:
    """coremltools numbers the names that it makes up, and goes on from other programs' numbers,
    such as tests leave that build operators and convert nothing."""
    for count in (1, 2):
        network = replace(pooling(8), variants=(pooling(16),)[: count - 1], multiple=2)
        found = []
        for left in (0, 7):
            path = tmp_path / f"{count}-{left}.mlpackage"
            Builder.name_count.update(dict.fromkeys(numbered(tmp_path), left))
            phases = Phases(path.name, TARGET.phases, lambda line: None)
            TARGET.write(network, get_recipe("fp16"), path, phases)
            found.append(sha256(path))
        assert numbered(tmp_path)
        assert found[0] == found[1]
        assert Builder.name_count[numbered(tmp_path)[0]] == 7  # what others count goes on
        Builder.name_count.clear()


def numbered(folder: Path) -> list[str]:
    """What is numbered among the names in packages: `cast` of `cast_0`."""
    return sorted(
        {
            match[1]
            for package in folder.glob("*.mlpackage")
            for function in load_spec(str(package)).mlProgram.functions.values()
            for block in function.block_specializations.values()
            for operation in block.operations
            if (match := re.fullmatch(r"(.+)_\d+", operation.outputs[0].name))
        }
    )
