"""What JSON holds is typed: nothing of our own goes about as a `dict[str, Any]`."""

from __future__ import annotations

import re

from tests.house.source import none, product

UNTYPED = re.compile(r"\b(dict|Mapping|MutableMapping|Dict)\[str, Any\]")
FOREIGN = "what another library or format has there"
MESSAGES = "a job between processes: the function that does it says what is in it"
ALLOWED = {
    "export/coreai/read.py": FOREIGN,
    "export/coreai/write.py": FOREIGN,
    "export/coreml/mil/operators.py": FOREIGN,
    "export/coreml/mil/program.py": FOREIGN,
    "export/coreml/write.py": FOREIGN,
    "export/executorch/layers.py": FOREIGN,
    "export/executorch/read.py": FOREIGN,
    "export/isolated.py": MESSAGES,
    "export/onnx/read.py": FOREIGN,
    "export/onnx/write.py": FOREIGN,
    "export/stage.py": MESSAGES,
    "export/targets.py": "what a backend took, in its own words",
    "mobile_harness/arm64/worker.py": MESSAGES,
    "mobile_harness/coreai.py": MESSAGES,
    "mobile_harness/frames.py": MESSAGES,
    "mobile_harness/ios/iphone.py": MESSAGES,
    "mobile_harness/mil.py": MESSAGES,
    "mobile_harness/worker.py": MESSAGES,
    "pocketfocus/models/checkpoints.py": FOREIGN,
    "pocketfocus/models/loading.py": FOREIGN,
    "pocketfocus/models/student.py": "a student's config.json, as diffusers has it",
    "pocketfocus/run/cache.py": "what was kept, which its own reader knows",
    "pocketfocus/run/child.py": MESSAGES,
    "pocketfocus/run/files.py": "any JSON file, before it is checked",
    "pocketfocus/run/manifest.py": "what a backend took, in its own words; JSON before it is read",
    "pocketfocus/run/processes.py": MESSAGES,
    "pocketfocus/run/rows.py": "a row on its way to JSON",
    "quantize/toolchains/onnx.py": FOREIGN,
}
"""Modules that hold some, and why."""


def untyped(text: str) -> list[int]:
    """Lines that hold one."""
    lines = enumerate(text.splitlines(), start=1)
    return [number for number, line in lines if UNTYPED.search(line)]


def test_what_is_untyped_is_seen() -> None:
    assert untyped("a = 1\nRow = dict[str, Any]\ndef f(x: Mapping[str, Any]) -> int: ...") == [2, 3]
    assert not untyped("Facts = dict[str, object]")


def test_rows_options_and_parts_of_json_are_typed() -> None:
    none(
        f"{module.path}:{line} takes any JSON: give it a model (see run/rows.py)"
        for module in product()
        if module.path not in ALLOWED
        for line in untyped(module.text)
    )


def test_no_module_is_allowed_what_it_does_not_hold() -> None:
    held = {module.path for module in product() if untyped(module.text)}
    none(f"{path} holds none any more: take it out" for path in ALLOWED.keys() - held)
