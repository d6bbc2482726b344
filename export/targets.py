"""The registry of targets. Adding one is a package with a `TARGET`, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from torch import Tensor

from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import Artifact, Compatibility, Delegation, Function, TensorSpec

if TYPE_CHECKING:  # what executes a file needs none of these and their many imports
    from pocketfocus.export.network import Network
    from pocketfocus.export.phases import Phases
    from pocketfocus.quantize.recipes import Recipe, Scheme

TARGETS = {
    "executorch": "pocketfocus.export.executorch",
    "coreml": "pocketfocus.export.coreml",
    "onnx": "pocketfocus.export.onnx",
    "coreai": "pocketfocus.export.coreai",
}

Severity = Literal["error", "warning", "note"]

Runner = Callable[..., tuple[Tensor, ...]]
"""Takes the inputs of a file in its order, and gives its outputs in its order."""


class Layer(NamedTuple):
    """What a convolution or product of a file gave.

    Attributes:
        path: of the layer, or of its fixed kernel, in the student; "" where the file does not say.
        operator: its kind and its name in the file.
        value: the output, float32.
        weights: how many it has; 0 where that is not known.
        channels_last: whether a convolution's output has its channels last, as XNNPACK does, for
            which a 1x1 convolution is a product of rows.
    """

    path: str
    operator: str
    value: Tensor
    weights: int = 0
    channels_last: bool = False


class Sizes(NamedTuple):
    """The photos that a file takes.

    Attributes:
        listed: (H, W) in pixels, the usual one first.
        multiple: photos of any other size too, whose sides are multiples of it; 0 for none.
    """

    listed: tuple[Size, ...]
    multiple: int = 0


@dataclass(frozen=True)
class Written:
    """What came of writing a file.

    Attributes:
        applied: what the backend took: see `Artifact.applied`.
        delegation: see `Artifact.delegation`.
        inputs: with their ranges, where these were measured; else those of the network.
        outputs: the same.
        functions: what to call for photos of each size, where the file has such.
        multiple: see `Sizes`.
    """

    applied: dict[str, Any]
    delegation: Delegation | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    functions: tuple[Function, ...] = ()
    multiple: int = 0


@dataclass(frozen=True)
class Finding:
    """How a file did at a gate that its target has beside parity, and what was found."""

    gate: str
    passed: bool
    why: str


class Advice(NamedTuple):
    """What a written file may do badly on some device, by a rule that rests on a report.

    Attributes:
        rule: its name, for scripts.
        severity: an error is known to break, a warning has been seen to, a note says where not to
            take the file.
        where: in the file.
        what: is wrong there.
        remedy: the way out.
        link: the report or the documentation that the rule rests on.
    """

    rule: str
    severity: Severity
    where: str
    what: str
    remedy: str
    link: str


Options = Mapping[str, str | int]
"""What is asked of targets beyond recipes, by the names that the targets gave it."""


def not_laid_open(path: Path, feeds: Mapping[str, Tensor]) -> tuple[list[Layer], Tensor]:
    """See `Target.layers`; UserError, for a runtime that gives the outputs of a file only."""
    raise UserError(
        f"{path} does not show what its layers give, its runtime executes it as a whole: locate "
        "the fault in the same precision of another target"
    )


@dataclass(frozen=True)
class Target:
    """A runtime that files are written for.

    Attributes:
        name: by which users choose it, and the folder of its files.
        suffix: of its files.
        colour: in charts.
        toolchain: which applies recipes, a module of `quantize/toolchains`.
        packages: whose versions shape the files.
        runtime: the fact of `Device.describe` that tells the version of what executes them.
        notes: what stays in which type, by the fewest bits of a recipe.
        phases: of writing a file, and the share of the time that each takes; they sum to 1.
        write: writes one file or folder.
        open: (path, threads) gives what calls it; None threads for the runtime's own default.
            UserError when the file cannot be opened; `cannot_run` is asked before.
        lend: as `open`, for a runtime that overwrites at the next call what it gave, as apps use
            it; None where it gives new memory every time.
        input_shapes: of a file, in order, for photos of the usual size.
        sizes: of the photos that a student's file takes.
        read: the schemes of a file's layers, by their paths in the network; RuntimeError for
            weights of a type that is not known.
        cannot_run: why this machine cannot execute its files; None when it can.
        cannot_write: why this machine cannot write its files; None when it can.
        layers: (path, inputs by name) executes a file with its layers laid open: what each gives,
            in the order of execution, and the output.
        plain: the recipe of a network without weights.
        extra: of pocketfocus, which installs its packages; "" where every installation has them.
        fallback: the device that verifies its files where a device cannot execute them.
        hardware: whose alone its files are for, by the maker's name; "" where any will do.
        writes_references: whether it takes the networks of a whole reference.
        reference_options: of those, unless others are asked for.
        adapted: the recipe that an option asks for; UserError for one that cannot be.
        own_gate: how a file did at the target's own gate, of its artifact and recipe; None where
            there is none.
        compatibility: what loads a file, of its `Written.applied`.
        lint: what may go badly with a file, by its graph alone; UserError for a file that is none.
        units: the compute units that an app may put its files on, by its runtime's own names, the
            one to try first before the others; one name where the file itself decides.
    """

    name: str
    suffix: str
    colour: str
    toolchain: str
    packages: tuple[str, ...]
    runtime: str
    notes: Mapping[int, str]
    phases: Mapping[str, float]
    write: Callable[[Network, Recipe, Path, Phases], Written]
    open: Callable[[Path, int | None], Runner]
    input_shapes: Callable[[Path], list[tuple[int, ...]]]
    sizes: Callable[[Path], Sizes]
    read: Callable[[Path, Network], dict[str, Scheme]]
    cannot_run: Callable[[], str | None]
    cannot_write: Callable[[], str | None]
    lend: Callable[[Path, int | None], Runner] | None = None
    layers: Callable[[Path, Mapping[str, Tensor]], tuple[list[Layer], Tensor]] = not_laid_open
    plain: str = "fp32"
    extra: str = ""
    fallback: str = ""
    hardware: str = ""
    writes_references: bool = True
    reference_options: Options = field(default_factory=dict)
    adapted: Callable[[Recipe, Options], Recipe] = field(default=lambda recipe, _: recipe)
    own_gate: Callable[[Artifact, Recipe], Finding | None] = field(default=lambda *_: None)
    compatibility: Callable[[Mapping[str, Any]], Compatibility | None] = field(
        default=lambda _: None
    )
    lint: Callable[[Path], list[Advice]] = field(default=lambda _: [])
    units: tuple[str, ...] = ("default",)


def get_target(name: str) -> Target:
    """The target of that name; UserError names the known ones."""
    if name not in TARGETS:
        raise UserError(f"unknown target '{name}': choose from {', '.join(TARGETS)}")
    return cast(Target, import_module(TARGETS[name]).TARGET)


def get_targets() -> tuple[Target, ...]:
    """All of them."""
    return tuple(map(get_target, TARGETS))


def left_out() -> dict[str, str]:
    """The targets that are written by name only, as their extra is not installed, and why."""
    optional = (target for target in get_targets() if target.extra)
    reasons = {target.name: target.cannot_write() for target in optional}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def target_of(path: Path) -> Target | None:
    """The target whose suffix a path has."""
    if not path.suffix:
        return None
    return next((target for target in get_targets() if target.suffix == path.suffix), None)


def in_order(module: str, what: str) -> Callable[[Path, Network], dict[str, Scheme]]:
    """What reads the schemes of layers, of a module whose `schemes` gives those of a file's
    operators in the order of execution; `what` is what errors call the file."""

    def read(path: Path, network: Network) -> dict[str, Scheme]:
        from pocketfocus.quantize.plan import by_layer

        return by_layer(network.order, import_module(module).schemes(path), what)

    return read


def later(module: str, name: str) -> Callable[..., Any]:
    """A function whose module is imported when it is first called."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(module), name)(*arguments)

    return call
