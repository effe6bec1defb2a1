"""Element by element: activations, arithmetic, comparisons, casts."""

from __future__ import annotations

import functools
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnx_ir import tensor_adapters
from torch import Tensor

from tgdsurgery.onnx_graph.ops.registry import OPS, Op, op

Number = float | int | bool

# ONNX op -> torch function of the same inputs and no attributes.
_SAME = {
    **{name: getattr(torch, name.lower()) for name in ("Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal")},
    **{name: getattr(torch, name.lower()) for name in ("Floor", "Ceil", "Round", "Sign", "Erf", "Sigmoid")},
    **{name: getattr(torch, name.lower()) for name in ("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Tanh")},
    **{name: getattr(torch, name.lower()) for name in ("Sinh", "Cosh", "Asinh", "Acosh", "Atanh")},
    **{"Relu": F.relu, "HardSwish": F.hardswish, "Mish": F.mish, "Softsign": F.softsign},
    **{"Softplus": F.softplus, "Not": torch.logical_not, "IsNaN": torch.isnan},
}
# The second operand may be a number.
_BINARY = {
    **{"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow},
    **{"Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt},
    **{"LessOrEqual": torch.le},
}
_LOGICAL = {"And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor}


def _plain(names: dict[str, Any], *parameters: str, soft: tuple[str, ...] = ()) -> None:
    for name, function in names.items():
        OPS[name] = Op(function, inputs=parameters, soft=frozenset(soft))


_plain(_SAME, "x")
_plain(_BINARY, "a", "b", soft=("b",))
_plain(_LOGICAL, "a", "b")


@op("Div", soft=("b",))
def div(a: Tensor, b: Tensor | Number) -> Tensor:
    """Of integers, the quotient without its fraction."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@op("Mod", soft=("b",))
def mod(a: Tensor, b: Tensor | Number, *, fmod: int = 0) -> Tensor:
    """The remainder, with the sign of `b`; of `a` with `fmod`."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@op("Max")
def maximum(*values: Tensor) -> Tensor:
    """The largest of several tensors, entry by entry."""
    return functools.reduce(torch.maximum, values)


@op("Min")
def minimum(*values: Tensor) -> Tensor:
    """The smallest of several tensors, entry by entry."""
    return functools.reduce(torch.minimum, values)


@op("Sum")
def total(*values: Tensor) -> Tensor:
    """The sum of several tensors."""
    return functools.reduce(torch.add, values)


@op("Mean")
def average(*values: Tensor) -> Tensor:
    """The mean of several tensors."""
    return total(*values) / len(values)


@op("Clip", soft=("min", "max"))
def clip(x: Tensor, min: Tensor | Number | None = None, max: Tensor | Number | None = None) -> Tensor:
    """Entries moved into a range; open where there is no end."""
    return x if min is None and max is None else torch.clamp(x, min, max)  # type: ignore[arg-type]


@op("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Negative entries times `alpha`."""
    return F.leaky_relu(x, alpha)


@op("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Negative entries: alpha (exp(x) - 1)."""
    return F.elu(x, alpha)


@op("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Negative entries: alpha (exp(x / alpha) - 1)."""
    return F.celu(x, alpha)


@op("Selu")
def selu(x: Tensor, *, alpha: float = 1.6732632, gamma: float = 1.0507010) -> Tensor:
    """An Elu, times `gamma`."""
    return gamma * F.elu(x, alpha)


@op("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Entries above `alpha`, zero elsewhere."""
    return F.threshold(x, alpha, 0.0)


@op("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """The line alpha x + beta, between 0 and 1."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@op("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """As torch's."""
    return F.gelu(x, approximate=approximate)


@op("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """The input times the sigmoid of `alpha` times it."""
    return x * torch.sigmoid(alpha * x)


@op("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Negative entries times a slope that fits by broadcasting."""
    return torch.where(x < 0, x * slope, x)


@op("IsInf")
def isinf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Where entries are infinite."""
    found = torch.isinf(x)
    found = found if detect_negative else found & (x > 0)
    return found if detect_positive else found & (x < 0)


@op("Where")
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """One of two values, entry by entry."""
    return torch.where(condition, x, y)


@op("Cast")
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """In another type."""
    return x.to(tensor_adapters.to_torch_dtype(ir.DataType(to)))


@op("CastLike")
def cast_like(x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """In the type of another tensor."""
    return x.to(target.dtype)


@op("DequantizeLinear")
def dequantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - zero_point) scale; scales are one, or one for each entry of an axis."""
    if block_size:
        raise NotImplementedError("block_size")
    shape = [-1 if d == axis % max(x.dim(), 1) else 1 for d in range(x.dim())] if scale.dim() == 1 else []
    shape = shape if scale.numel() > 1 else [1] * x.dim()
    centred = x.to(scale.dtype)
    if zero_point is not None:
        centred = centred - zero_point.to(scale.dtype).reshape(shape)
    return centred * scale.reshape(shape)
