"""Imports point one way, and never in a circle."""

from __future__ import annotations

import graphlib
import json
import re
import subprocess
import sys

from tests.house.source import (
    FOLDERS,
    PACKAGE,
    ROOT,
    STAGES,
    Module,
    by_name,
    imported_module,
    none,
    product,
)

BELOW = {  # layer -> the layers that it may import, beside itself
    "core": (),
    "quantize": ("core",),
    "distill": ("core", "quantize"),
    "export": ("core", "quantize"),
    "mobile_harness": ("core", "quantize", "distill", "export"),
    "benchmarks": ("core", "quantize", "distill", "export", "mobile_harness"),
    "cli": ("core", *STAGES),
    "research": ("core", *STAGES, "cli"),
}
NAMED = re.compile(rf"{PACKAGE}(\.\w+)+(:\w+)?")  # a module as a registry or a job writes it
Graph = dict[str, set[str]]


def layer(name: str) -> str:
    """Layer of a module by its dotted name."""
    part = f"{name}.".split(".")[1]
    return part if part in BELOW else "core"


def test_every_layer_is_there() -> None:
    assert {layer(module.name) for module in product()} == BELOW.keys()


def test_layers_import_only_those_below() -> None:
    """Lazy imports too, those for types, and modules that a registry or a job names in a string."""
    wrong = []
    for module in product():
        own = layer(module.name)
        if module.path == f"{PACKAGE}/__main__.py":
            own = "cli"
        used = {(each.name, each.line) for each in module.imports}
        used |= {
            (str(each.value).replace(":", "."), each.lineno)
            for each in module.strings
            if NAMED.fullmatch(str(each.value))
        }
        for name, line in sorted(used, key=lambda pair: pair[1]):
            found = imported_module(name)
            if found and layer(found) not in (own, *BELOW[own]):
                wrong.append(f"{module.path}:{line} ({own}) imports {found}")
    none(wrong)


def graph(modules: tuple[Module, ...]) -> Graph:
    """What each module imports of the product, in functions too, but for those for types alone."""
    return {
        module.name: {
            found
            for each in module.imports
            if not each.for_types_only and (found := imported_module(each.name))
        }
        for module in modules
    }


def circles(imports: Graph) -> list[str]:
    """Circles until there is none left, each as `a → b → a`; its last import is then cut."""
    found, left = [], {name: set(others) for name, others in imports.items()}
    while True:
        try:
            graphlib.TopologicalSorter(left).prepare()
        except graphlib.CycleError as error:
            names = error.args[1][::-1]  # who imports, before what is imported
            found.append(" → ".join(names))
            left[names[-2]].discard(names[-1])
        else:
            return found


def test_circles_are_found() -> None:
    imports: Graph = {"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": {"d"}, "e": {"a"}}
    assert sorted(map(len, map(str.split, circles(imports)))) == [3, 7]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_there_is_no_circle() -> None:
    none(circles(graph(product())))


def test_imports_are_absolute_and_of_the_package() -> None:
    """`import export` would load a second copy of every module."""
    tests = (path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))
    wrong = [
        f"{module.path}:{each.line} imports {each.name}"
        for module in (*product(), *map(Module, tests))
        for each in module.imports
        if each.name.split(".")[0] in ("", *FOLDERS)
    ]
    none(wrong)


def test_the_product_is_named_as_it_is_imported() -> None:
    assert "pocketfocus.export.targets" in by_name()
    assert imported_module("pocketfocus.run.files.write_atomic") == "pocketfocus.run.files"
    assert imported_module("torch.nn") is None


def test_what_needs_no_reference_imports_none() -> None:
    """Modules of commands, and of the processes that they start, in each of which this would take
    seconds: what references are made of, what draws figures, what few figures need."""
    heavy = {"coremltools", "diffusers", "executorch", "matplotlib", "torchao", "torchmetrics"}
    heavy |= {"transformers"}
    names = ["benchmarks.evaluate", "benchmarks.golden", "benchmarks.latency", "benchmarks.verify"]
    names += ["export.open", "export.stage", "mobile_harness.worker", "photos.refocusing"]
    modules = json.dumps([f"{PACKAGE}.{name}" for name in names])
    code = f"""
import importlib, json, sys
from {PACKAGE}.models.student import load_student
for name in json.loads({modules!r}):
    importlib.import_module(name)
load_student()
print(json.dumps(sorted({heavy!r} & sys.modules.keys())))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120, capture_output=True
    )
    none(json.loads(ended.stdout))
