"""Filter layers: conv, transposed conv and matrix products with a parameter. Their outputs start fresh labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from tgdsurgery.mapping.nodes import aliases
from tgdsurgery.mapping.rules.call import Call, Traced, Weight, fresh_labels, is_weight
from tgdsurgery.mapping.rules.registry import rule_for

_CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable")


@rule_for(*_CONVOLUTIONS)
def convolution(
    call: Call,
    tensor: Traced,
    weight: Traced,
    bias: Traced | None,
    stride: Any = None,
    padding: Any = None,
    dilation: Any = None,
    transposed: bool = False,
    output_padding: Any = None,
    groups: int = 1,
    *args: Any,
) -> Tensor:
    """(B, C, *) with weight (N, C/g, *K), or (C, N/g, *K) if transposed."""
    return call.filter(tensor, weight, bias, groups=groups, transposed=transposed)


@rule_for("addmm", "baddbmm", "addbmm", "_addmm_activation", "addmv")
def add_product(call: Call, bias: Traced, first: Traced, second: Traced, **kwargs: Any) -> Tensor:
    """bias + first @ second."""
    is_row = is_weight(bias) and len(bias.shape) == 1
    labels = _product(call, first, second, bias if is_row else None)
    return labels if is_row else call.table.union(labels, bias.labels)


@rule_for("mm", "bmm", "mv", "matmul", "dot", "vdot")
def product(call: Call, first: Traced, second: Traced, **kwargs: Any) -> Tensor:
    """first @ second."""
    return _product(call, first, second, None)


@rule_for("linear")
def linear(call: Call, tensor: Traced, weight: Traced, bias: Traced | None = None) -> Tensor:
    """tensor @ weight.T + bias, where the backend keeps it whole."""
    return _product(call, tensor, _turned(weight), bias)


def _product(call: Call, first: Traced, second: Traced, bias: Traced | None) -> Tensor:
    table = call.table
    filters = not _makes_a_kernel(call.node)
    weight = _matrix(second) if filters and is_weight(second) and first.value is None else None
    if weight is not None:  # (..., F) @ (F, N)
        return call.filter(first, _turned(weight), bias)
    weight = _matrix(first) if filters and is_weight(first) and second.value is None else None
    if weight is not None and len(second.shape) > 1:  # (N, F) @ (..., F, L)
        rows = [d for d in range(second.labels.dim()) if d != second.labels.dim() - 2]
        inputs = table.reduce(second.labels, rows).flatten()
        return fresh_labels(call, inputs, Weight.of(call, weight), bias, axis=-2).unsqueeze(-1)
    left = table.reduce(first.labels, [-1])
    right = table.reduce(second.labels, [-2]) if len(second.shape) > 1 else table.reduce(second.labels, [-1])
    labels = table.union(left, right)
    labels = labels if bias is None else table.union(labels, bias.labels)
    return labels.reshape(call.shape) if len(second.shape) == 1 else labels


def _makes_a_kernel(node: fx.Node) -> bool:
    """Whether the result is reshaped and then used as the weight of a convolution.

    Such a mixture of kernels has as many outputs as the weight has entries, and none of them is a feature map.
    """
    for user in node.users:
        name = getattr(user.target, "_opname", "")
        if name in _CONVOLUTIONS and user.args[1] is node:
            return True
        if (aliases(user) is node or name == "clone") and _makes_a_kernel(user):
            return True
    return False


def _turned(matrix: Traced) -> Traced:
    value = None if matrix.value is None else matrix.value.t()
    return replace(matrix, labels=matrix.labels.t(), value=value, shape=matrix.shape[::-1])


def _matrix(weight: Traced) -> Traced | None:
    """The weight as a matrix; None for a batch of different matrices."""
    value = weight.value
    if value is not None and value.dim() == 3 and (value.shape[0] == 1 or value.stride(0) == 0):
        return replace(weight, labels=weight.labels[0], value=value[0], shape=weight.shape[1:])
    return weight if len(weight.shape) == 2 else None
