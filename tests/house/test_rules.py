"""What every module keeps to: sizes of functions, places of literals, the field's words."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest

from pocketfocus.export.targets import TARGETS
from tests.house.source import FOLDERS, PACKAGE, ROOT, Module, none, product

LINES, PARAMETERS, MODULE_LINES = 60, 6, 500
IMAGES, CONSTANTS = f"{PACKAGE}/photos/images.py", f"{PACKAGE}/run/constants.py"
COINED = {  # what the field calls it
    "asked": "requested",
    "death": "exit reason",
    "fallen": "not delegated",
    "inside": "layers",
    "journal": "run log",
    "learner": "student trainer",
    "mistake": "user error",
    "standin": "fallback",
    "taken": "applied",
    "told": "notes",
    "twin": "reference device",
}
COMMAND = "command|callback"  # of typer's
# Their parameters are named by others: options, fields of diffusers' config.json, MIL's inputs.
NAMED_BY_OTHERS = f"{COMMAND}|register_to_config|operator"
Function = ast.FunctionDef | ast.AsyncFunctionDef
NONE = ast.Constant(None)
COUNTED = [ast.dump(ast.Constant(number)) for number in (8, 9)]  # the last position, all frames


def is_decorated(function: Function, names: str) -> bool:
    decorators = (ast.unparse(each) for each in function.decorator_list)
    return any(re.search(rf"(^|\.)({names})\b", text) for text in decorators)


def parameters(function: Function) -> list[str]:
    given = function.args
    all_of_them = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    names = [each.arg for each in all_of_them if each is not None]
    return names[1:] if names and names[0] in ("self", "cls") else names


def test_functions_fit_a_screen() -> None:
    """From `def` to the end; of a command of typer's, whose options are many, from its body on."""
    long = []
    for module in product():
        for each in module.functions:
            first = (each.body[0] if is_decorated(each, COMMAND) else each).lineno
            lines = (each.end_lineno or first) - first + 1
            if lines > LINES:
                long.append(f"{module.at(each)} {each.name}: {lines} lines")
    none(long)


def test_functions_take_six_parameters_at_most() -> None:
    many = [
        f"{module.at(each)} {each.name}: {len(parameters(each))} parameters"
        for module in product()
        for each in module.functions
        if not is_decorated(each, NAMED_BY_OTHERS) and len(parameters(each)) > PARAMETERS
    ]
    none(many)


def test_no_module_is_longer_than_500_lines() -> None:
    tests = (path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))
    modules = [*product(), *map(Module, tests)]
    counted = ((module.path, module.text.count("\n")) for module in modules)
    none(f"{path}: {lines} lines" for path, lines in counted if lines > MODULE_LINES)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_named_in_its_package_and_the_registry_alone(target: str) -> None:
    own = re.compile(rf"export/targets\.py|export/{target}/.*|quantize/(toolchains/)?{target}\.py")
    named = [
        f"{module.at(each)} {each.value!r}"
        for module in product()
        if not own.fullmatch(module.path)
        for each in module.strings
        if target in (words := re.split(r"[\s,/]+", str(each.value))) and set(words) <= {*TARGETS}
    ]
    none(named)


def test_pixels_are_converted_in_one_module() -> None:
    """8 bits to [-1, 1] and back: by half of 255, or times 255."""
    found = []
    for module in product():
        if module.path == IMAGES:
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and node.value == 127.5:
                found.append(module.at(node))
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                sides = (node.left, node.right)
                if any(isinstance(each, ast.Constant) and each.value == 255 for each in sides):
                    found.append(module.at(node))
    none(found)


def counts_frames(node: ast.AST) -> bool:
    """Whether the number of frames or the last position stands there as a literal."""
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        is_count = any(re.search("frame|position", ast.unparse(each).lower()) for each in targets)
        return is_count and ast.dump(node.value) in COUNTED
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "range":
        return [ast.dump(each) for each in node.args] == COUNTED[1:]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        given, defaults = [*node.args.posonlyargs, *node.args.args], node.args.defaults
        pairs = [*zip(given[len(given) - len(defaults) :], defaults, strict=True)]
        pairs += zip(node.args.kwonlyargs, (d or NONE for d in node.args.kw_defaults), strict=True)
        return any(a.arg == "frames" and ast.dump(d) in COUNTED for a, d in pairs)
    return isinstance(node, ast.Constant) and node.value == ",".join(map(str, range(9)))


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        ("FRAMES = 9", True),
        ("LAST_POSITION: int = 8", True),
        ("every = range(9)", True),
        ("def f(x, frames=9): pass", True),
        ("default = '0,1,2,3,4,5,6,7,8'", True),
        ("FRAMES = count()", False),
        ("def f(x, *, frames=FRAMES): pass", False),
        ("POSITIONS = (0, 4, 8)", False),
        ("groups = 8", False),
    ],
)
def test_a_count_of_frames_is_seen(code: str, counts: bool) -> None:
    assert any(map(counts_frames, ast.walk(ast.parse(code)))) == counts


def test_frames_are_counted_once() -> None:
    counted = [
        (module.path, node)
        for module in product()
        for node in ast.walk(module.tree)
        if counts_frames(node)
    ]
    none(f"{path}:{getattr(node, 'lineno', 0)}" for path, node in counted if path != CONSTANTS)
    assert [ast.unparse(node).split(" ")[0] for _, node in counted] == ["FRAMES"]


def test_frames_come_from_where_they_are_counted() -> None:
    elsewhere = [
        f"{module.path}:{each.line} imports {each.name}"
        for module in product()
        for each in module.imports
        if each.name.endswith(".FRAMES") and each.name != f"{PACKAGE}.run.constants.FRAMES"
    ]
    none(elsewhere)


def test_a_model_is_described_once() -> None:
    """No Protocol is there only because what it describes may not be imported."""
    elsewhere = [
        f"{module.at(node)} {node.name}"
        for module in product()
        if module.path != f"{PACKAGE}/models/model.py"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("Protocol") for base in node.bases)
        and node.name in ("Model", "Refocuser", "Target")
    ]
    none(elsewhere)


def words(identifier: str) -> set[str]:
    """Of `MIL_check2` or `StandIn`: its words, and every two in one, in lower case."""
    found = re.findall(r"[A-Z]*[a-z]+|[A-Z]+", identifier)
    lower = [word.lower() for word in found]
    both = {first + second for first, second in pairwise(lower)}
    return {*lower, *both} | {word.removesuffix("s") for word in (*lower, *both)}


def identifiers(module: Module) -> Iterator[tuple[str, str]]:
    """Where, and a name given there: of modules, functions, parameters, variables, fields."""
    yield from ((module.path, part) for part in module.name.split("."))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield module.at(node), node.name
        elif isinstance(node, ast.arg):
            yield module.at(node), node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield module.at(node), node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id != "inside":  # of a shape: a mask's usual name
                yield module.at(node), node.id
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield module.at(node), node.name


def test_words_of_identifiers() -> None:
    assert {"stand", "in", "standin"} <= words("STAND_INS") | words("stand_in")
    assert "learner" in words("StudentLearner") and "taken" not in words("mistaken")


def test_names_are_the_fields_words() -> None:
    coined = [
        f"{place} {name}: {COINED[word]}"
        for module in product()
        for place, name in identifiers(module)
        for word in sorted(words(name) & COINED.keys())
    ]
    none(coined)


def test_docstrings_are_whole_sentences() -> None:
    """Up to the first empty line: ends with a full stop, and is no fragment."""
    wrong = []
    for module in product():
        for node in ast.walk(module.tree):
            if not isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                continue
            said = ast.get_docstring(node)
            first = " ".join((said or "Nothing.").split("\n\n")[0].split())
            if not first.endswith(".") or first.startswith("Of "):
                place = module.path if isinstance(node, ast.Module) else module.at(node)
                wrong.append(f"{place} {first!r}")
    none(wrong)


def test_every_modules_first_line_is_one_sentence() -> None:
    """It is the module's phrase in docs/map.md."""
    firsts = (
        (each.path, (ast.get_docstring(each.tree) or "").split("\n")[0]) for each in product()
    )
    none(f"{path} {first!r}" for path, first in firsts if not first.endswith("."))


def definitions(module: Module) -> Iterator[tuple[ast.stmt, str]]:
    """Names given at the top of a module."""
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node, node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for each in (inner for target in targets for inner in ast.walk(target)):
                if isinstance(each, ast.Name):
                    yield node, each.id


def test_what_is_defined_is_used() -> None:
    """By the product itself, its templates included: what tests alone call is dead."""
    templates = (p for folder in (PACKAGE, *FOLDERS) for p in (ROOT / folder).glob("**/*.html"))
    texts = [module.text for module in product()]
    texts += [path.read_text(encoding="utf-8") for path in templates]
    seen = Counter(word for text in texts for word in re.findall(r"\w+", text))
    none(
        f"{module.at(node)} {name}"
        for module in product()
        for node, name in definitions(module)
        if seen[name] == 1
    )
