"""A file opened up: what its layers give when its runtime executes it. One module a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, cast

from torch import Tensor

MODULES = {
    "executorch": "pocketfocus.export.executorch.layers",
    "coreml": "pocketfocus.export.coreml.layers",
    "onnx": "pocketfocus.export.onnx.layers",
}


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


Open = Callable[[Path, Mapping[str, Tensor]], tuple[list[Layer], Tensor]]
"""(file, inputs by name) -> its layers in the order of execution, and the stack."""


def get_inside(target: str) -> Open:
    """What opens the files of a target."""
    return cast(Open, import_module(MODULES[target]).layers)
