"""The precisions as data: what is requested of every toolchain, and the gate its file has to pass.

A recipe is a YAML file of rules; the last rule whose pattern fits a layer decides, and a layer that
no rule fits stays float32. One recipe serves all targets. What a toolchain takes instead is read
from its file and written into the manifest (`Artifact.applied`), never here.

    name: mine
    about: 4-bit coarser levels, the rest int8
    min_psnr_db: 38
    rules:
      - {layers: "*", bits: 8, granularity: channel, activations: static}
      - {layers: "*.encoder.2.*", bits: 4, granularity: 32, activations: dynamic}
      - {layers: "*.encoder.2.*", targets: [coreml], bits: 4, form: palette, granularity: 8}
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from pocketfocus.run.errors import UserError

Bits = Literal[32, 16, 8, 4]
Form = Literal["affine", "palette"]
Activations = Literal["float", "static", "dynamic"]
Granularity = int | str
Ios = Literal[17, 18]

FOLDER = Path(__file__).parent / "recipes"
SUFFIXES = (".yaml", ".yml")
TOOLCHAIN_NAMES = tuple(sorted(p.stem for p in FOLDER.with_name("toolchains").glob("[!_]*.py")))
"""What a rule may name as one of its targets: the modules of `quantize/toolchains`."""
REGEX = "regex:"  # how a pattern begins that is a regular expression
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LARGEST = 1_000_000  # bytes of a recipe
GROUP = 32  # weights that share a 4-bit scale, unless a recipe says other
IOS_VERSIONS: tuple[int, ...] = get_args(Ios)


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
        group, what = self.granularity, "palette" if self.form == "palette" else "scale"
        shared = (
            f"one {what} for {group} {unit}" if isinstance(group, int) else f"per-{group} {what}"
        )
        return f"{self.bits} bits, {shared}, {self.activations} activations"


class _Fields(BaseModel):
    """A mapping of a YAML or JSON file; descriptions of its fields are what to choose from."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, frozen=True)


def _pattern(text: str) -> str:
    try:
        re.compile(text.removeprefix(REGEX) if text.startswith(REGEX) else "")
    except re.error as error:
        raise ValueError(f"'{text}' is no regular expression ({error}): mend it") from error
    return text


class Rule(_Fields):
    """A scheme for the layers whose path fits `layers`, on `targets` (empty for all)."""

    layers: Annotated[str, AfterValidator(_pattern)] = Field(default="*", description="a pattern")
    targets: Annotated[
        tuple[Annotated[str, Field(pattern=f"^({'|'.join(TOOLCHAIN_NAMES)})$")], ...],
        BeforeValidator(lambda found: found if isinstance(found, list | tuple) else (found,)),
    ] = Field(default=(), description=" or ".join(TOOLCHAIN_NAMES))
    bits: Bits = Field(description="32, 16, 8 or 4")
    form: Form = Field(default="affine", description="affine or palette")
    granularity: Literal["tensor", "channel"] | Annotated[int, Field(strict=True, gt=0)] = Field(
        default="channel", description="tensor, channel, or a whole number from 1 up"
    )
    activations: Activations = Field(default="float", description="float, static or dynamic")

    @classmethod
    def of(cls, layers: str, scheme: Scheme, targets: Iterable[str] = ()) -> Rule:
        """The rule that gives these layers a scheme."""
        return cls.model_validate({"layers": layers, "targets": tuple(targets), **stated(scheme)})

    @property
    def scheme(self) -> Scheme:
        """What it requests of a layer."""
        if self.bits >= 16:
            return Scheme(self.bits)
        alone = self.form == "palette" and self.granularity == 1
        granularity = "channel" if alone else self.granularity
        return Scheme(self.bits, self.form, granularity, self.activations)

    def fits(self, layer: str) -> bool:
        """Whether the pattern, shell-style or a whole regular expression, fits a layer's path."""
        if self.layers.startswith(REGEX):
            return re.fullmatch(self.layers.removeprefix(REGEX), layer) is not None
        return fnmatchcase(layer, self.layers)

    @model_validator(mode="after")
    def _some_target_takes_it(self) -> Rule:
        extra = sorted(self.model_fields_set & {"form", "granularity", "activations"})
        if self.bits >= 16 and extra:
            raise ValueError(
                f"no target takes {self.bits}-bit weights, which are floating point, with "
                f"'{extra[0]}': leave it out, or choose 8 or 4 bits"
            )
        if self.form == "palette" and self.activations != "float":
            raise ValueError(
                f"no target takes palettes with {self.activations} int8 activations: choose float "
                "activations, or the affine form"
            )
        return self

    @model_serializer
    def _as_written(self) -> dict[str, object]:
        targets = {"targets": list(self.targets)} if self.targets else {}
        return {"layers": self.layers, **targets, **stated(self.scheme)}


def stated(scheme: Scheme) -> dict[str, Granularity]:
    """A scheme in a rule's words: floating point has none but its bits."""
    return {"bits": scheme.bits} if scheme.bits >= 16 else asdict(scheme)


_Number = Annotated[float, Field(strict=True, ge=0, lt=1e6, description="a number from 0 up")]


class Recipe(_Fields):
    """One precision.

    Attributes:
        name: by which users choose it, and in the names of its files.
        about: what it is, in a sentence.
        min_psnr_db: the gate against the parent (design §6).
        min_delegated: least share of a file's operators that its backend executes, of targets
            whose files tell.
        rules: the last one that fits a layer decides.
        ios: the oldest one that has to read the file, of targets for Apple's devices.
    """

    name: str = Field(
        pattern=f"^{NAME.pattern}$", description="letters, digits, . - and _ for a file"
    )
    about: str = Field(default="", description="a sentence")
    min_psnr_db: _Number
    min_delegated: _Number = 0.99
    rules: tuple[Rule, ...] = Field(min_length=1, description="a list of one rule or more")
    ios: Ios = Field(default=18, description=" or ".join(map(str, IOS_VERSIONS)))

    @property
    def weight_bits(self) -> int:
        """The fewest bits that a rule requests."""
        return min(rule.bits for rule in self.rules)

    @property
    def calibrated(self) -> bool:
        """Whether a toolchain may need real inputs to find the ranges of activations."""
        return self.weight_bits <= 8

    def scheme_of(self, target: str, layer: str) -> Scheme:
        """What is requested of a target for a layer."""
        for rule in reversed(self.rules):
            if (not rule.targets or target in rule.targets) and rule.fits(layer):
                return rule.scheme
        return Scheme()

    def requested(self, target: str, layers: Iterable[str]) -> dict[str, Scheme]:
        """What is requested of a target for every layer.

        UserError for a pattern that fits none of the layers, whatever its targets; a network that
        has none takes any.
        """
        names = tuple(layers)
        for rule in self.rules:
            if names and not any(map(rule.fits, names)):
                raise UserError(
                    f"recipe {self.name}: the pattern '{rule.layers}' fits none of the network's "
                    f"{len(names)} layers: write one that does, such as {names[0]}"
                )
        return {name: self.scheme_of(target, name) for name in names}


def recipe_from(content: Any, where: str) -> Recipe:
    """A recipe of what a YAML or JSON file holds; UserError names `where`, the key and the way out.

    What no target can take is refused here: floating point with scales, or palettes beside integer
    activations.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}{_user_error(error)}") from error


def _user_error(error: ValidationError) -> str:
    """What pydantic found first, and the way out; unknown keys before what they may have meant."""
    found = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    keys, place, known = found["loc"], "", Recipe.model_fields
    if len(keys) > 1 and keys[0] == "rules":
        keys, place, known = keys[2:], f", rule {int(keys[1]) + 1}", Rule.model_fields
    if found["type"] == "value_error":
        return f"{place}: {found['ctx']['error']}"
    if not keys:
        return f"{place} is no mapping of keys to values: see quantize/recipes/int8.yaml"
    key = str(keys[0])
    if found["type"] == "extra_forbidden":
        return f"{place}: unknown key '{key}': choose from {', '.join(known)}"
    wanted = known[key].description
    if found["type"] == "missing":
        return f"{place}: '{key}' is missing: choose {wanted}"
    return f"{place}: '{key}' is {found['input']!r}: choose {wanted}"


def to_yaml(recipe: Recipe) -> str:
    """A recipe as the YAML that `load_recipe` reads."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json"),
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads YAML without aliases, by which a few lines stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse what stands for something said before."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{event.anchor}, and a recipe has none: write out what it "
                "stands for",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe's YAML file; UserError when it cannot be read or is no recipe."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has over {LARGEST:,} bytes, a recipe has fewer: name another")
        # It is a safe loader: a subclass of yaml.SafeLoader.
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _PlainLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} cannot be read ({error}): name another file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also dates and numbers in it
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


SHIPPED = ("fp32", "fp16", "int8", "int4", "mixed")
RECIPES = {name: load_recipe(FOLDER / f"{name}.yaml") for name in SHIPPED}
