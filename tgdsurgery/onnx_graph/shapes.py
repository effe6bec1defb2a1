"""What a graph computes from shapes, in Python's own numbers and lists.

ONNX computes with sizes as with any other tensor. In torch sizes are numbers, and what is computed from them must
not pass through tensors: those have no values on the meta device, under torch.export and in the channel map.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Host = Any  # a number, or nested lists of numbers

FLOATS = (1, 10, 11, 16)  # ONNX's numbers of floating-point types
BOOL = 9


def as_tensor(value: Host, like: Tensor) -> Tensor:
    """Numbers as a tensor, where they meet data."""
    return torch.tensor(value, device=like.device)


def shape(x: Tensor | Host, *, start: int = 0, end: int | None = None) -> list[int]:
    """The sizes of a tensor, or of numbers."""
    sizes = x.shape if isinstance(x, Tensor) else np.asarray(x, dtype=object).shape
    return list(sizes)[start:end]


def size(x: Tensor | Host) -> int:
    """The number of entries."""
    return functools.reduce(operator.mul, shape(x), 1)


def _plain(found: Any) -> Host:
    return found.tolist() if isinstance(found, np.ndarray) else found


def _array(value: Host) -> np.ndarray[Any, Any]:
    return np.asarray(value, dtype=object)


def gather(x: Host, indices: Host, *, axis: int = 0) -> Host:
    """Entries by their numbers."""
    return _plain(np.take(_array(x), np.asarray(indices, dtype=np.int64), axis=axis))


def concat(*values: Host, axis: int) -> Host:
    """Side by side."""
    return _plain(np.concatenate([_array(value) for value in values], axis=axis))


def slice_(
    x: Host,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Host:
    """Ranges of some axes."""
    found = _array(x)
    axes = range(len(starts)) if axes is None else axes
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        found = found[(slice(None),) * (axis % found.ndim) + (slice(start, end, step),)]
    return _plain(found)


def squeeze(x: Host, axes: Sequence[int] | None = None) -> Host:
    """Without axes of one entry."""
    return _plain(np.squeeze(_array(x), None if axes is None else tuple(axes)))


def unsqueeze(x: Host, axes: Sequence[int]) -> Host:
    """With axes of one entry."""
    return _plain(np.expand_dims(_array(x), tuple(axes)))


def reshape(x: Host, shape: Sequence[int], *, allowzero: int = 0) -> Host:
    """Other sizes."""
    return _plain(_array(x).reshape(tuple(shape)))


def transpose(x: Host, *, perm: Sequence[int] | None = None) -> Host:
    """Axes in another order."""
    return _plain(_array(x).transpose(perm))


def expand(x: Host, shape: Sequence[int]) -> Host:
    """Broadcast."""
    found = _array(x)
    return _plain(np.broadcast_to(found, np.broadcast_shapes(found.shape, tuple(shape))))


def cast(x: Host, *, to: int, saturate: int = 1, round_mode: str = "up") -> Host:
    """In another type; whole numbers stay as they are."""
    if to in FLOATS:
        return _each(float, x)
    return _each(bool if to == BOOL else _whole, x)


def _whole(number: Any) -> Any:
    return int(number) if isinstance(number, (float, bool)) else number


def where(condition: Host, x: Host, y: Host) -> Host:
    """One of two values."""
    return _each(lambda c, a, b: a if c else b, condition, x, y)


def constant_of_shape(shape: Sequence[int], *, value: int = 0, **_: object) -> Host:
    """The same number everywhere."""
    return _plain(np.full(tuple(shape), value, dtype=object))


def range_(start: int, limit: int, delta: int, **_: object) -> Host:
    """Numbers in steps."""
    return list(range(start, limit, delta))


def reduce_prod(x: Host, axes: object = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Host:
    """The product of a list."""
    found = functools.reduce(operator.mul, _array(x).reshape(-1).tolist(), 1)
    return [found] if keepdims else found


def _each(function: Callable[..., Any], *values: Host) -> Host:
    """Entry by entry, broadcast."""
    return _plain(np.frompyfunc(function, len(values), 1)(*[_array(value) for value in values]))


def divide(a: Any, b: Any) -> Any:
    """Of whole numbers, without the fraction."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return a // b if (a < 0) == (b < 0) else -(-a // b)


def floor(a: Any) -> Any:
    """A float still."""
    return float(a // 1)


def ceil(a: Any) -> Any:
    """A float still."""
    return float(-(-a // 1))


# ONNX op -> function of single numbers.
NUMBERS: dict[str, Callable[..., Any]] = {
    **{"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": divide, "Mod": operator.mod},
    **{"Min": min, "Max": max, "Neg": operator.neg, "Abs": abs, "Not": operator.not_, "Floor": floor},
    **{"Ceil": ceil, "Equal": operator.eq, "Less": operator.lt, "Greater": operator.gt, "Pow": operator.pow},
    **{"LessOrEqual": operator.le, "GreaterOrEqual": operator.ge, "Sqrt": lambda a: a**0.5},
    **{"And": lambda a, b: a and b, "Or": lambda a, b: a or b},
}


def number(*values: Host, kind: str, fmod: int = 0) -> Host:
    """Arithmetic, entry by entry."""
    return _each(NUMBERS[kind], *values)


# Of lists; the first input decides.
MOVED: dict[str, Callable[..., Host]] = {
    **{"Gather": gather, "Slice": slice_, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Reshape": reshape},
    **{"Transpose": transpose, "Expand": expand, "Cast": cast, "ReduceProd": reduce_prod},
    **{"ConstantOfShape": constant_of_shape},
}
# Any input decides.
MIXED: dict[str, Callable[..., Host]] = {"Concat": concat, "Where": where, "Range": range_}
