"""Many entries become one, or meet each other: sums, extremes, softmax, matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tgdsurgery.onnx_graph.ops.registry import one, op

Axes = Sequence[int] | None

REDUCED: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
}


def reduce(
    x: Tensor, axes: Axes = None, *, kind: str, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """One number for all entries along some axes, or all of them."""
    given = axes is not None and len(axes) > 0
    if noop_with_empty_axes and not given:
        return x
    return REDUCED[kind](
        x, tuple(axes) if axes is not None and given else tuple(range(x.dim())), bool(keepdims)
    )


for _name in REDUCED:
    op(_name, host=("axes",), kind=_name)(reduce)


@op("ReduceProd", host=("axes",))
def reduce_prod(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """The product along some axes."""
    if noop_with_empty_axes and not axes:
        return x
    for axis in sorted(axis % x.dim() for axis in (axes or range(x.dim())))[::-1]:
        x = x.prod(axis, keepdim=bool(keepdims))
    return x


@op("ArgMax", largest=True)
@op("ArgMin", largest=False)
def arg_extreme(
    x: Tensor, *, largest: bool, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """Where the largest or smallest entry along an axis is."""
    if select_last_index:
        raise NotImplementedError("select_last_index")
    return (x.argmax if largest else x.argmin)(axis, keepdim=bool(keepdims))


@op("TopK", host=("k",), several=True)
def top_k(
    x: Tensor, k: int | Sequence[int], *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, ...]:
    """The largest or smallest entries along an axis, and where they are."""
    return tuple(x.topk(one(k), axis, bool(largest), bool(sorted)))


@op("CumSum", host=("axis",))
def cumsum(x: Tensor, axis: int | Sequence[int], *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Sums of all entries up to each."""
    axis = one(axis)
    flipped = x.flip(axis) if reverse else x
    found = flipped.cumsum(axis, dtype=x.dtype)
    found = found - flipped if exclusive else found
    return found.flip(axis) if reverse else found


@op("Softmax", kind="softmax")
@op("LogSoftmax", kind="log_softmax")
def softmax(x: Tensor, *, kind: str, opset: int, axis: int | None = None) -> Tensor:
    """Shares along an axis; before opset 13, along all axes from `axis` on."""
    function = torch.softmax if kind == "softmax" else torch.log_softmax
    if opset >= 13:
        return function(x, -1 if axis is None else axis)
    axis = (1 if axis is None else axis) % x.dim()
    return function(x, -1) if axis == x.dim() - 1 else function(x.flatten(axis), -1).reshape(x.shape)


@op("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A product of matrices."""
    return a @ b


@op("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha a b + beta c."""
    product = (a.t() if transA else a) @ (b.t() if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


@op("Einsum")
def einsum(*values: Tensor, equation: str) -> Tensor:
    """Sums of products, as the equation says."""
    return torch.einsum(equation, *values)
