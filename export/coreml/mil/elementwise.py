"""MIL's elementwise operators, activations, comparisons, reductions and integer quantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.export.coreml.mil.registry import OPERATORS, integers, operator

BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.true_divide,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
}
UNARY: dict[str, Callable[..., Tensor]] = {
    "identity": lambda x: x,
    "abs": torch.abs,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
}
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "reduce_mean": torch.mean,
    "reduce_sum": torch.sum,
    "reduce_max": torch.amax,
    "reduce_min": torch.amin,
    "reduce_l2_norm": lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim),
    "reduce_sum_square": lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim),
}


def _binary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, y: function(torch.as_tensor(x), torch.as_tensor(y))


def _unary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x: function(x)


def _reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Any = None, keep_dims: Any = False) -> Tensor:
        over = list(range(x.ndim)) if axes is None else integers(axes)
        return function(x, over, keepdim=bool(keep_dims))

    return reduce


OPERATORS |= {name: _binary(function) for name, function in BINARY.items()}
OPERATORS |= {name: _unary(function) for name, function in UNARY.items()}
OPERATORS |= {name: _reduction(function) for name, function in REDUCTIONS.items()}


@operator("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    """As it is: the program rounds every output to the type that it declares."""
    return x


@operator("select")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` where `cond`, else `b`."""
    return torch.where(cond, a, b)


@operator("rsqrt")
def rsqrt(x: Tensor, epsilon: Any) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


@operator("log")
def log(x: Tensor, epsilon: Any) -> Tensor:
    """ln(x + epsilon)."""
    return torch.log(x + epsilon)


@operator("inverse")
def inverse(x: Tensor, epsilon: Any) -> Tensor:
    """1 / (x + epsilon)."""
    return torch.reciprocal(x + epsilon)


@operator("clip")
def clip(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    """Between alpha and beta."""
    return torch.clamp(x, float(alpha), float(beta))


@operator("leaky_relu")
def leaky_relu(x: Tensor, alpha: Any) -> Tensor:
    """x, negative values times alpha."""
    return F.leaky_relu(x, float(alpha))


@operator("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """x, negative values times the alpha of their channel."""
    return F.prelu(x, alpha)


@operator("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: Any) -> Tensor:
    """x, 0 where it is under alpha."""
    return torch.where(x >= alpha, x, torch.zeros_like(x))


@operator("elu")
def elu(x: Tensor, alpha: Any) -> Tensor:
    """x, negative values alpha (exp(x) - 1)."""
    return F.elu(x, float(alpha))


@operator("linear_activation")
def linear_activation(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    """Alpha x + beta."""
    return x * alpha + beta


@operator("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    """Alpha x + beta, between 0 and 1."""
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("gelu")
def gelu(x: Tensor, mode: str) -> Tensor:
    """Gaussian error linear unit, exact or one of MIL's two approximations."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@operator("softmax")
def softmax(x: Tensor, axis: Any) -> Tensor:
    """Softmax along `axis`."""
    return torch.softmax(x, int(axis))


@operator("quantize")
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Any = None, axis: Any = None
) -> Tensor:
    """clip(round(input / scale) + zero_point), halves to even, to int8 or uint8."""
    kind = {"int8": torch.int8, "uint8": torch.uint8}[output_dtype]
    scale, zero = _along(scale, input, axis), _along(zero_point, input, axis)
    limits = torch.iinfo(kind)
    return torch.clamp(torch.round(input / scale) + zero, limits.min, limits.max).to(kind)


@operator("dequantize")
def dequantize(input: Tensor, scale: Tensor, zero_point: Any = None, axis: Any = None) -> Tensor:
    """Scale (input - zero_point)."""
    return _along(scale, input, axis) * (input.float() - _along(zero_point, input, axis))


def _along(values: Any, x: Tensor, axis: Any) -> Tensor:
    """A scalar, or a vector laid along `axis` of x; None is 0. Integers become float32."""
    found = torch.as_tensor(0 if values is None else values).float()
    if found.ndim == 0:
        return found
    shape = [1] * x.ndim
    shape[int(axis)] = -1
    return found.reshape(shape)
