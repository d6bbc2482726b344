"""What a backend takes of a recipe, layer by layer: as planned, then as read from its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from torch import nn

from pocketfocus.quantize.layers import Weighted, layers_of
from pocketfocus.quantize.recipes import Recipe, Scheme

UNPLANNED = "the toolchain left it so"
ONE_FLOAT = "a file has one floating-point type throughout"


@dataclass(frozen=True)
class Choice:
    """What a backend is given in place of a recipe's scheme; `why` is "" where it is that."""

    scheme: Scheme
    why: str = ""


Choose = Callable[[Scheme, nn.Module], Choice]
"""Takes the requested scheme and the layer; gives what the backend takes."""


def plan(recipe: Recipe, target: str, network: nn.Module, choose: Choose) -> dict[str, Choice]:
    """The choice for every layer; UserError for a pattern of the recipe that fits none."""
    layers = layers_of(network)
    requested = recipe.requested(target, layers)
    possible = one_float(requested)
    found = {name: choose(possible[name], layer) for name, layer in layers.items()}
    return {
        name: replace(choice, why=choice.why or ONE_FLOAT)
        if possible[name] != requested[name]
        else choice
        for name, choice in found.items()
    }


def all_static(schemes: Mapping[str, Scheme]) -> bool:
    """Whether every layer that is quantized has int8 activations, so that what lies between layers
    can be int8 too."""
    return all(s.activations == "static" for s in schemes.values() if s.bits < 16)


def one_float(requested: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """Floating-point layers of one type: float16 only where it is requested of every layer."""
    if all(scheme.bits == 16 for scheme in requested.values()):
        return dict(requested)
    return {name: Scheme(32) if s.bits >= 16 else s for name, s in requested.items()}


def statement(
    requested: Mapping[str, Scheme], choices: Mapping[str, Choice], found: Mapping[str, Scheme]
) -> dict[str, dict[str, object]]:
    """For the manifest, of every layer: what is in the file, and what was requested if not that."""
    rows = {}
    for name, scheme in found.items():
        row = asdict(scheme)
        if scheme != requested[name]:
            planned = choices[name]
            why = [planned.why] if planned.why else []
            if scheme != planned.scheme:
                why.append(UNPLANNED)
            row |= {"asked": str(requested[name]), "why": "; ".join(why)}
        rows[name] = row
    return rows


def summary(found: Mapping[str, Scheme]) -> str:
    """How many layers are kept in which way, the most frequent first."""
    counts = Counter(map(str, found.values())).most_common()
    return "; ".join(f"{count} layers: {scheme}" for scheme, count in counts)


def matched(network: Sequence[Weighted], found: Sequence[int], what: str) -> list[str]:
    """Which of the network's operators each operator of a file is: the layer's path, or "".

    Both lists are in the order of execution; `found` are counts of weights. Toolchains may change
    the order of operators that do not depend on each other: the first of the same size is taken.
    RuntimeError when the file has other operators than the network.
    """
    left = list(network)
    names = []
    for count in found:
        index = next((i for i, (_, size) in enumerate(left) if size == count), None)
        if index is None:
            raise RuntimeError(f"{what} has an operator of {count} weights that its network lacks")
        names.append(left.pop(index)[0])
    if left:
        missing = ", ".join(name or f"one of {size} weights" for name, size in left)
        raise RuntimeError(f"{what} has no operator for {missing}")
    return names


def by_layer(
    network: Sequence[Weighted], found: Sequence[tuple[Scheme, int]], what: str
) -> dict[str, Scheme]:
    """The schemes of a file's weighted operators by the layers that they are; see `matched`."""
    names = matched(network, [count for _, count in found], what)
    return {name: scheme for name, (scheme, _) in zip(names, found, strict=True) if name}
