"""Core ML packages of the same model: the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder
from coremltools.models.utils import load_spec

from pocketfocus.export.coreml.write import MAIN, save_all
from pocketfocus.run.files import sha256


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
