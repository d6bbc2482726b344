"""What loads a file: said in the manifest, and tried with runtimes that are not the installed one.

Those are wheels from the package index, unpacked into a folder of their own without what they
depend on, and used by a process of its own; without an index the tests are skipped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketfocus.data.optics import one_hot
from pocketfocus.export.onnx.write import OLDEST, OLDEST_OF_4_BITS
from pocketfocus.export.targets import get_target
from pocketfocus.mobile_harness.doctor import conversions
from pocketfocus.run.manifest import load_manifest
from pocketfocus.run.metrics import psnr

pytestmark = pytest.mark.timeout(300)
Exported = Callable[[Sequence[str]], Path]
PTE = "executorch/student-int8.pte"
ONNX = ("onnx/student-fp32.onnx", "onnx/student-int8.onnx")
SAME_DB = 60.0
CALL = {
    ".pte": """
from executorch.extension.pybindings.portable_lib import _load_for_executorch
import executorch, torch
home, outputs = executorch.__path__[0], _load_for_executorch(path).forward(
    [torch.from_numpy(given["photo"]), torch.from_numpy(given["position"])])
stack = outputs[0].numpy()
""",
    ".onnx": """
import onnxruntime
home = onnxruntime.__file__
stack = onnxruntime.InferenceSession(path).run(None, dict(given))[0]
""",
}


def unpacked(folder: Path, *requirements: str) -> Path:
    """Wheels without what they depend on; skips where the index has none of them."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-compile", "--target"]
    done = subprocess.run(
        [*command, str(folder), *requirements], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no {', '.join(requirements)} to be had: {done.stderr.splitlines()[-1:]}")
    return folder


def called(path: Path, wheels: Path, photo: torch.Tensor) -> np.ndarray | str:
    """The stack that another runtime makes, or how its error ends."""
    np.savez(wheels / "given.npz", photo=photo.numpy(), position=one_hot(3).numpy())
    code = f"""
import sys
sys.path.insert(0, {str(wheels)!r})
import numpy as np
path, given = {str(path)!r}, np.load({str(wheels / "given.npz")!r})
{CALL[path.suffix]}
assert home.startswith({str(wheels)!r}), home
np.save({str(wheels / "stack.npy")!r}, stack)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return np.load(wheels / "stack.npy") if run.returncode == 0 else run.stderr[-300:]


def agrees(path: Path, wheels: Path) -> None:
    photo = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    target = next(
        get_target(n) for n in ("executorch", "onnx") if get_target(n).suffix == path.suffix
    )
    own, other = target.open(path, 1)(photo, one_hot(3))[0], called(path, wheels, photo)
    assert isinstance(other, np.ndarray), other
    assert psnr(own, torch.from_numpy(other)) >= SAME_DB


def test_the_next_release_of_executorch_loads_todays_file(
    exported: Exported, tmp_path: Path
) -> None:
    """As its makers promise."""
    major, minor = map(int, metadata.version("executorch").split(".")[:2])
    following = f"executorch>={major}.{minor + 1},<{major}.{minor + 2}"
    agrees(exported([PTE]) / PTE, unpacked(tmp_path / "wheels", following))


def test_the_oldest_onnxruntime_loads_todays_file_and_none_before_it(
    exported: Exported, tmp_path: Path
) -> None:
    run = exported(ONNX)
    numpy = "numpy==1.26.4"  # wheels of that age were built for it
    oldest = unpacked(tmp_path / "oldest", f"onnxruntime=={OLDEST}.*", numpy)
    for name in ONNX:
        agrees(run / name, oldest)
    before = f"1.{int(OLDEST.split('.')[1]) - 1}"
    found = called(
        run / ONNX[0],
        unpacked(tmp_path / "before", f"onnxruntime=={before}.*", numpy),
        torch.zeros(1, 3, 64, 64),
    )
    assert isinstance(found, str) and "Unsupported model IR version" in found


def test_the_manifest_and_doctor_say_what_loads_a_file(exported: Exported) -> None:
    names = [PTE, "coreml/student-fp32.mlpackage", "onnx/student-int4.onnx", ONNX[0]]
    said = {a.name: a.compatibility for a in load_manifest(exported(names)).artifacts}
    musts = {name: each.must for name, each in said.items() if each}
    assert musts.keys() == set(names)
    assert musts[PTE].startswith(
        "ExecuTorch " + ".".join(metadata.version("executorch").split(".")[:2])
    )
    assert "iOS 18, macOS 15" in musts[names[1]]
    assert f"onnxruntime {OLDEST} " in musts[ONNX[0]]
    targets = [get_target(name) for name in ("executorch", "coreml", "onnx", "coreai")]
    rows = [each.name for each in conversions(targets) if each.group == "load"]
    assert rows == ["executorch", "coreml", "onnx"]


def test_4_bit_weights_need_a_later_onnxruntime() -> None:
    found = get_target("onnx").compatibility({"opset": 21})
    assert found and f"before {OLDEST_OF_4_BITS}" in found.cannot
