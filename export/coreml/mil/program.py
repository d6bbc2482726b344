"""A saved Core ML program, loaded back into MIL and executed with PyTorch, operator by operator.

The MIL check says what the file's program means. Arithmetic is float32; after every operator its
outputs are rounded to the types that the program declares (`declared=True`), or floats are left in
float32 to see what this rounding costs. Apple's kernels may sum in another order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketfocus.export.coreml.mil.operators import OPERATORS
from pocketfocus.export.quiet import loading, quiet
from pocketfocus.export.targets import Runner
from pocketfocus.run.errors import UserError, first_line

MAIN = "main"
FLOATS = {"fp16": torch.float16, "fp32": torch.float32}
TYPES = {
    **FLOATS,
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
}

Watch = Callable[[str, str, Tensor], None]
"""Gets every float value as it is made: its name, its operator's type, the value."""


@dataclass(frozen=True)
class Program:
    """A function of a program.

    Attributes:
        path: of the file, for messages.
        function: coremltools' pymil function.
        constants: by name, every weight as it is after decompression; floats as float32.
    """

    path: str
    function: Any
    constants: Mapping[str, Any]

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the inputs, in order."""
        return {name: tuple(var.shape) for name, var in self.function.inputs.items()}

    @torch.no_grad()
    def __call__(
        self, feeds: Mapping[str, Tensor], declared: bool = True, watch: Watch | None = None
    ) -> dict[str, Tensor]:
        """The outputs by name, floats as float32.

        `feeds` holds every input by name, float32, of its own shape (UserError else).
        """
        values = dict(self.constants)
        for name, shape in self.inputs.items():
            if name not in feeds or tuple(feeds[name].shape) != shape:
                found = list(feeds[name].shape) if name in feeds else "nothing"
                raise UserError(f"{self.path} takes {name} {list(shape)}, it was given {found}")
            values[name] = rounded(feeds[name], self.function.inputs[name], declared)
        left = self.uses()
        for op in self.operations():
            (made,) = op.outputs
            values[made.name] = rounded(self.execute(op, values), made, declared)
            if watch is not None and values[made.name].is_floating_point():
                watch(made.name, op.op_type, values[made.name])
            for var in variables(op):  # large values go when their last reader has run
                left[var.name] -= 1
                if not left[var.name] and var.name not in self.constants:
                    del values[var.name]
        return {var.name: values[var.name] for var in self.function.outputs}

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, for the inputs in their order."""
        return tuple(self(dict(zip(self.inputs, inputs, strict=False))).values())

    def operations(self) -> Iterator[Any]:
        """The operators that compute, in order."""
        return (op for op in self.function.operations if not is_constant(op))

    def uses(self) -> Counter[str]:
        """How many times each value is read; outputs once more, so that they stay."""
        read = Counter(var.name for op in self.operations() for var in variables(op))
        read.update(var.name for var in self.function.outputs)
        return read

    def execute(self, op: Any, values: Mapping[str, Any]) -> Tensor:
        """One operator's output, not rounded; UserError names an operator that cannot be run."""
        arguments = {name: _value(found, values) for name, found in given(op).items()}
        try:
            result = OPERATORS[op.op_type](**arguments)
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(
                f"{self.path}: the MIL check cannot run {op.op_type} {op.name} "
                f"({first_line(error)}): verify the file on macOS"
            ) from error
        if tuple(result.shape) != tuple(op.outputs[0].shape):
            raise UserError(
                f"{self.path}: {op.op_type} {op.name} makes {list(result.shape)}, the program "
                f"declares {list(op.outputs[0].shape)}"
            )
        return result


def load_program(path: Path) -> Program:
    """Load the usual function of a .mlpackage; UserError when it is none, or names the operators
    that are not known."""
    return from_pymil(load_pymil(path), str(path))


def open_functions(path: Path) -> Runner:
    """What calls that function of a .mlpackage which takes a first input of its shape; where there
    is none the usual one, which says what it takes."""
    whole = load_pymil(path)
    programs = {name: from_pymil(whole, str(path), name) for name in whole.functions}
    by_shape = {next(iter(program.inputs.values())): program for program in programs.values()}
    return lambda *inputs: by_shape.get(tuple(inputs[0].shape), programs[MAIN]).run(*inputs)


def load_pymil(path: Path) -> Any:
    """A .mlpackage as coremltools' own program object; UserError when it is none."""
    import coremltools as ct

    with loading(path, "Core ML program"), quiet():
        return pymil_of(ct.models.MLModel(str(path), skip_model_load=True))


def pymil_of(model: Any) -> Any:
    """A model in memory as coremltools' own program object."""
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = model.get_spec()
    return load(spec, spec.specificationVersion, model.weights_dir)


def from_pymil(program: Any, path: str = "the program", name: str = MAIN) -> Program:
    """A function of coremltools' own program object, ready to be executed."""
    if name not in program.functions:
        names = ", ".join(program.functions)
        raise UserError(f"{path} holds the functions {names}: the MIL check takes {name}")
    function = program.functions[name]
    unknown = sorted(
        {op.op_type for op in function.operations if not is_constant(op)} - OPERATORS.keys()
    )
    if unknown:
        raise UserError(
            f"{path}: the MIL check does not know the operators {', '.join(unknown)}: add them to "
            "pocketfocus/export/coreml/mil, or verify the file on macOS"
        )
    constants: dict[str, Any] = {}
    for op in filter(is_constant, function.operations):
        plain = op.op_type == "const"  # coremltools decompresses what is not
        value = op.outputs[0].val if plain else op.materialized_val_inference()
        constants |= {var.name: tensor_of(value) for var in op.outputs}
    return Program(path, function, constants)


def is_constant(op: Any) -> bool:
    """A weight or parameter, plain or compressed."""
    return op.op_type == "const" or op.op_type.startswith("constexpr_")


def given(op: Any) -> dict[str, Any]:
    """An operator's inputs by name: variables, lists of them, or MIL's own default values."""
    inputs = {name: found for name, found in op.inputs.items() if found is not None}
    return {**{k: v for k, v in op.default_inputs().items() if v is not None}, **inputs}


def variables(op: Any) -> Iterator[Any]:
    """Every variable that an operator reads."""
    for found in op.inputs.values():
        yield from found if isinstance(found, list | tuple) else [found] if found else []


def rounded(value: Tensor, var: Any, declared: bool) -> Tensor:
    """A value in the type that the program declares for it; floats are held in float32."""
    from coremltools.converters.mil.mil import types

    name = types.builtin_to_string(var.dtype)
    kind = TYPES[name]
    if name not in FLOATS:
        return value.to(kind)
    return value.to(kind).float() if declared else value.float()


def tensor_of(value: Any) -> Any:
    """A constant as a tensor, floats as float32; strings stay."""
    if isinstance(value, str):
        return value
    found = np.asarray(value)
    if found.dtype.kind in "US":
        return str(found)
    if found.dtype.kind == "f":
        found = found.astype(np.float32)
    elif found.dtype == np.uint16 or found.dtype == np.uint32:
        found = found.astype(np.int64)
    return torch.from_numpy(np.array(found))


def _value(found: Any, values: Mapping[str, Any]) -> Any:
    from coremltools.converters.mil.mil import Var

    if isinstance(found, list | tuple) and found and isinstance(found[0], Var):
        return [_value(one, values) for one in found]
    return values[found.name] if isinstance(found, Var) else found
