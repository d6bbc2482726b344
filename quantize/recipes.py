"""The precisions as data: what is asked of every toolchain, and the gate its file has to pass.

A recipe is a YAML file of rules; the last rule whose pattern fits a layer decides, and a layer that
no rule fits stays float32. One recipe serves all targets. What a toolchain takes instead is read
from its file and written into the manifest (`Artifact.taken`), never here.

    name: mine
    about: 4-bit pointwise layers, the rest int8
    min_psnr_db: 38
    rules:
      - {layers: "*", bits: 8, granularity: channel, activations: static}
      - {layers: "*.up", bits: 4, granularity: 32, activations: dynamic}
      - {layers: "*.up", targets: [coreml], bits: 4, form: palette, granularity: 8}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from pocketfocus.run.errors import UserError

Bits = Literal[32, 16, 8, 4]
Form = Literal["affine", "palette"]
Activations = Literal["float", "static", "dynamic"]
Granularity = int | str

FOLDER = Path(__file__).parent / "recipes"
SUFFIXES = (".yaml", ".yml")
TARGET_NAMES = ("executorch", "coreml", "onnx")
BITS = (32, 16, 8, 4)
FORM_NAMES = ("affine", "palette")
ACTIVATIONS = ("float", "static", "dynamic")
REGEX = "regex:"  # how a pattern begins that is a regular expression
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
GROUP, PALETTE_CHANNELS = 32, 8  # of --four-bit

IOS_VERSIONS = (17, 18)
FORMS = {
    "palettes": (17, "16 values found by k-means, which every weight is an index of"),
    "blocks": (18, "4-bit integers, one scale for every 32 weights of a channel"),
}
"""How Core ML keeps 4-bit weights: the oldest iOS that reads it, and what it is."""


@dataclass(frozen=True)
class Scheme:
    """How the weights of one layer are kept, and what they are multiplied with.

    Attributes:
        bits: of a weight; 32 and 16 are floating point.
        form: `affine` integers times a scale, or a `palette` of 2**bits values.
        granularity: what shares a scale or a palette: `tensor`, `channel`, or a whole number: so
            many weights of a channel (affine), so many output channels (palette).
        activations: `float`; int8 with ranges from calibration (`static`) or found at run time
            (`dynamic`).
    """

    bits: int = 32
    form: str = "affine"
    granularity: Granularity = "tensor"
    activations: str = "float"

    def __str__(self) -> str:
        if self.bits >= 16:
            return f"float{self.bits}"
        unit = "channels" if self.form == "palette" else "weights"
        group = self.granularity
        shared = f"{group} {unit}" if isinstance(group, int) else f"a {group}"
        what = "palette" if self.form == "palette" else "scale"
        return f"{self.bits} bits, one {what} for {shared}, {self.activations} activations"


@dataclass(frozen=True)
class Rule:
    """A scheme for the layers whose path fits `layers`, on `targets` (empty for all)."""

    layers: str
    scheme: Scheme
    targets: tuple[str, ...] = ()

    def fits(self, layer: str) -> bool:
        """Whether the pattern, shell-style or a whole regular expression, fits a layer's path."""
        if self.layers.startswith(REGEX):
            return re.fullmatch(self.layers.removeprefix(REGEX), layer) is not None
        return fnmatchcase(layer, self.layers)


@dataclass(frozen=True)
class Recipe:
    """One precision.

    Attributes:
        name: by which users choose it, and in the names of its files.
        about: what it is, in a sentence.
        min_psnr_db: the gate against the parent (design §6).
        min_delegated: least share of an ExecuTorch file's operators that its backend executes.
        rules: the last one that fits a layer decides.
        ios: the oldest iOS that has to read the Core ML file.
    """

    name: str
    about: str
    min_psnr_db: float
    min_delegated: float
    rules: tuple[Rule, ...]
    ios: int = 18

    @property
    def weight_bits(self) -> int:
        """The fewest bits that a rule asks for."""
        return min((rule.scheme.bits for rule in self.rules), default=32)

    @property
    def calibrated(self) -> bool:
        """Whether a toolchain may need real inputs to find the ranges of activations."""
        return self.weight_bits <= 8

    def scheme_of(self, target: str, layer: str) -> Scheme:
        """What is asked of a target for a layer."""
        for rule in reversed(self.rules):
            if (not rule.targets or target in rule.targets) and rule.fits(layer):
                return rule.scheme
        return Scheme()

    def asked(self, target: str, layers: Iterable[str]) -> dict[str, Scheme]:
        """What is asked of a target for every layer.

        UserError for a pattern that fits none of the layers, whatever its targets.
        """
        names = tuple(layers)
        for rule in self.rules:
            if not any(map(rule.fits, names)):
                raise UserError(
                    f"recipe {self.name}: the pattern '{rule.layers}' fits none of the student's "
                    f"{len(names)} layers: write one that does, such as {names[0] if names else ''}"
                )
        return {name: self.scheme_of(target, name) for name in names}


def recipe_from(content: Any, where: str) -> Recipe:
    """A recipe of what a YAML or JSON file holds; UserError names `where`, the key and the way out.

    What no target can take is refused here: floating point with scales, or palettes beside integer
    activations.
    """
    fields = _mapping(content, where)
    _known(fields, ("name", "about", "min_psnr_db", "min_delegated", "ios", "rules"), where)
    for key in ("name", "min_psnr_db", "rules"):
        if key not in fields:
            raise UserError(f"{where}: '{key}' is missing: add it")
    name = str(fields["name"])
    if not NAME.fullmatch(name):
        raise UserError(f"{where}: '{name}' is no name for files: letters, digits, - and _ only")
    rules = fields["rules"]
    if not isinstance(rules, list | tuple) or not rules:
        raise UserError(f"{where}: 'rules' is no list of rules: write at least one")
    ios = fields.get("ios", 18)
    if ios not in IOS_VERSIONS:
        known = ", ".join(map(str, IOS_VERSIONS))
        raise UserError(f"{where}: no Core ML file is written for iOS {ios}: choose from {known}")
    return Recipe(
        name=name,
        about=str(fields.get("about", "")),
        min_psnr_db=_number(fields, "min_psnr_db", where),
        min_delegated=_number({"min_delegated": 0.99, **fields}, "min_delegated", where),
        rules=tuple(_rule(rule, f"{where}, rule {n}") for n, rule in enumerate(rules, 1)),
        ios=ios,
    )


def fields_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data, as `recipe_from` takes it."""
    rules = [
        {
            "layers": rule.layers,
            **({"targets": list(rule.targets)} if rule.targets else {}),
            **_scheme_fields(rule.scheme),
        }
        for rule in recipe.rules
    ]
    return {**asdict(recipe), "rules": rules}


def to_yaml(recipe: Recipe) -> str:
    """A recipe as the YAML that `load_recipe` reads."""
    return yaml.safe_dump(
        fields_of(recipe), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )


def load_recipe(path: Path) -> Recipe:
    """Read a recipe's YAML file; UserError when it cannot be read or is no recipe."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} cannot be read ({error}): name another file") from error
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path} is no YAML ({line}): mend it") from error
    return recipe_from(content, str(path))


def is_recipe_file(name: str) -> bool:
    """Whether a precision is meant as the path of a YAML file."""
    return name.endswith(SUFFIXES)


def get_recipe(name: str) -> Recipe:
    """The recipe of that name, or of that YAML file; UserError names the known ones.

    A file's recipe has a name of its own, for its files lie beside those of the shipped ones.
    """
    if is_recipe_file(name):
        recipe = load_recipe(Path(name))
        if recipe.name in RECIPES:
            raise UserError(
                f"{name}: the name '{recipe.name}' is a shipped recipe's: choose another"
            )
        return recipe
    if name not in RECIPES:
        raise UserError(
            f"unknown precision '{name}': choose from {', '.join(RECIPES)}, or name a .yaml file"
        )
    return RECIPES[name]


def for_ios(recipe: Recipe, ios: int | None, form: str | None) -> Recipe:
    """The recipe with Core ML's deployment target and form of 4-bit weights; None as it says.

    UserError for unknown ones, or a form that this iOS does not read.
    """
    ios = recipe.ios if ios is None else ios
    if ios not in IOS_VERSIONS:
        known = ", ".join(map(str, IOS_VERSIONS))
        raise UserError(f"no Core ML file is written for iOS {ios}: choose from {known}")
    recipe = replace(recipe, ios=ios)
    if form is None:
        return recipe
    if form not in FORMS:
        raise UserError(f"unknown form of 4-bit weights '{form}': choose from {', '.join(FORMS)}")
    oldest, _ = FORMS[form]
    if ios < oldest:
        others = [name for name, (least, _) in FORMS.items() if least <= ios]
        raise UserError(
            f"iOS {ios} cannot read 4-bit {form}, which came with iOS {oldest}: choose "
            f"--four-bit {others[0]}, or --ios {oldest}"
        )
    scheme = (
        Scheme(4, "palette", PALETTE_CHANNELS) if form == "palettes" else Scheme(4, "affine", GROUP)
    )
    rules: list[Rule] = []
    for rule in recipe.rules:
        rules.append(rule)
        if rule.scheme.bits == 4 and (not rule.targets or "coreml" in rule.targets):
            rules.append(Rule(rule.layers, scheme, ("coreml",)))
    return replace(recipe, rules=tuple(rules))


def _rule(content: Any, where: str) -> Rule:
    fields = _mapping(content, where)
    _known(fields, ("layers", "targets", "bits", "form", "granularity", "activations"), where)
    pattern = str(fields.get("layers", "*"))
    if pattern.startswith(REGEX):
        try:
            re.compile(pattern.removeprefix(REGEX))
        except re.error as error:
            raise UserError(f"{where}: '{pattern}' is no regular expression ({error})") from error
    targets = fields.get("targets", ())
    targets = tuple(targets) if isinstance(targets, list | tuple) else (targets,)
    for target in targets:
        _choice(target, TARGET_NAMES, "target", where)
    return Rule(pattern, _scheme(fields, where), targets)


def _scheme(fields: Mapping[str, Any], where: str) -> Scheme:
    if "bits" not in fields:
        raise UserError(f"{where}: 'bits' is missing: choose from {', '.join(map(str, BITS))}")
    bits = cast(int, _choice(fields["bits"], BITS, "bits", where))
    extra = [key for key in ("form", "granularity", "activations") if key in fields]
    if bits >= 16:
        if extra:
            raise UserError(
                f"{where}: no target takes {bits}-bit weights, which are floating point, with "
                f"'{extra[0]}': leave it out, or choose 8 or 4 bits"
            )
        return Scheme(bits)
    form = str(_choice(fields.get("form", "affine"), FORM_NAMES, "form", where))
    activations = str(
        _choice(fields.get("activations", "float"), ACTIVATIONS, "activations", where)
    )
    granularity: Granularity = fields.get("granularity", "channel")
    whole = isinstance(granularity, int) and not isinstance(granularity, bool)
    if not (whole and cast(int, granularity) > 0) and granularity not in ("tensor", "channel"):
        raise UserError(
            f"{where}: the granularity '{granularity}' is unknown: choose tensor, channel, or a "
            "whole number from 1 up"
        )
    if form == "palette" and activations != "float":
        raise UserError(
            f"{where}: no target takes palettes with {activations} int8 activations: choose float "
            "activations, or the affine form"
        )
    return Scheme(bits, form, granularity, activations)


def _scheme_fields(scheme: Scheme) -> dict[str, Any]:
    return {"bits": scheme.bits} if scheme.bits >= 16 else asdict(scheme)


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise UserError(f"{where} is no mapping of keys to values: see quantize/recipes/int8.yaml")
    return {str(key): value for key, value in content.items()}


def _known(fields: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in fields:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}': choose from {', '.join(known)}")


def _choice(value: Any, known: tuple[Any, ...], what: str, where: str) -> Any:
    if isinstance(value, bool) or value not in known:
        choices = ", ".join(map(str, known))
        raise UserError(f"{where}: unknown {what} '{value}': choose from {choices}")
    return value


def _number(fields: Mapping[str, Any], key: str, where: str) -> float:
    value = fields[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise UserError(f"{where}: '{key}' is {value}: write a number from 0 up")
    return float(value)


SHIPPED = ("fp32", "fp16", "int8", "int4", "mixed")
RECIPES = {name: load_recipe(FOLDER / f"{name}.yaml") for name in SHIPPED}
