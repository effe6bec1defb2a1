"""Filter layers: conv, transposed conv and matrix products with a parameter. Their outputs start fresh labels.

A weight is recognised by what it is made of: parameter rows and nothing from the input. Which output
channel belongs to which row is read off the labels, so that a weight that was permuted, sliced
(attention's packed projections) or computed (weight norm, standardisation) is still followed exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from tgdsurgery.core.records import ParameterRows
from tgdsurgery.mapping.nodes import alias_root, aliases
from tgdsurgery.mapping.rules.registry import Call, FilterCall, Traced, rule_for


def is_weight(tensor: Traced) -> bool:
    """Made of parameter rows, independent of the input."""
    return tensor.value is not None and tensor.labelled and tensor.value.is_floating_point()


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
    rank = len(weight.shape) - 2
    axis = len(call.shape) - rank - 1
    inputs = call.table.reduce(tensor.labels, [d for d in range(tensor.labels.dim()) if d != axis]).flatten()
    if weight.value is not None and is_weight(weight):
        over = range(2, len(weight.shape))
        ends = [call.table.reduce(weight.labels, [end, *over]).flatten() for end in (1, 0)]
        rows, features = reversed(ends) if transposed else ends
        filters = _Weight(weight.value, weight.source, rows, features, groups, transposed)
        fresh = _fresh(call, inputs, filters, bias, axis=-rank - 1)
    else:
        fresh = _mixed_by_group(call, inputs, weight, bias, groups=groups, transposed=transposed)
    return fresh.reshape(-1, *[1] * rank)


def _mixed_by_group(
    call: Call, inputs: Tensor, weight: Traced, bias: Traced | None, *, groups: int, transposed: bool
) -> Tensor:
    """Fixed kernels (blur pooling) and kernels made from the input (dynamic conv): a group's channels mix.

    For a depthwise kernel a group is one channel, which then passes as it is.
    """
    table = call.table
    by_group = table.reduce(inputs.reshape(groups, -1), [1])
    outputs = call.shape[1 if len(call.shape) == len(weight.shape) else 0]
    mixed = by_group.expand(groups, outputs // groups).reshape(-1)
    if weight.labelled:
        mixed = table.union(mixed, table.mix(weight.labels))
    return mixed if bias is None else table.union(mixed, bias.labels)


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
    value = None if weight.value is None else weight.value.t()
    turned = replace(weight, labels=weight.labels.t(), value=value, shape=weight.shape[::-1])
    return _product(call, tensor, turned, bias)


def _product(call: Call, first: Traced, second: Traced, bias: Traced | None) -> Tensor:
    table = call.table
    filters = not _makes_a_kernel(call.node)
    weight = _flat(second) if filters and is_weight(second) and first.value is None else None
    if weight is not None:  # (..., F) @ (F, N)
        inputs = table.reduce(first.labels, range(first.labels.dim() - 1)).flatten()
        return _linear_filters(call, inputs, weight, bias, axis=-1)
    weight = _flat(first) if filters and is_weight(first) and second.value is None else None
    if weight is not None and len(second.shape) > 1:  # (N, F) @ (..., F, L)
        rows = [d for d in range(second.labels.dim()) if d != second.labels.dim() - 2]
        inputs = table.reduce(second.labels, rows).flatten()
        turned = (weight[0].t(), weight[1].t(), weight[2])
        return _linear_filters(call, inputs, turned, bias, axis=-2).unsqueeze(-1)
    left = table.reduce(first.labels, [-1])
    right = table.reduce(second.labels, [-2]) if len(second.shape) > 1 else table.reduce(second.labels, [-1])
    if len(second.shape) == 1:
        return table.union(left, right).reshape(call.shape)
    return table.union(left, right)


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


def _flat(weight: Traced) -> tuple[Tensor, Tensor, fx.Node] | None:
    """Labels, value and origin of a matrix (F, N); None for a batch of different matrices."""
    labels, value = weight.labels, weight.value
    assert value is not None
    if value.dim() == 3 and (value.shape[0] == 1 or value.stride(0) == 0):
        labels, value = labels[0], value[0]
    return (labels, value, weight.source) if value.dim() == 2 else None


def _linear_filters(
    call: Call, inputs: Tensor, weight: tuple[Tensor, Tensor, fx.Node], bias: Traced | None, *, axis: int
) -> Tensor:
    labels, value, source = weight
    rows, features = (call.table.reduce(labels, [over]).flatten() for over in (0, 1))
    return _fresh(call, inputs, _Weight(value.t(), source, rows, features), bias, axis)


@dataclass(frozen=True)
class _Weight:
    """A weight, (N, C/g, *K) or (C, N/g, *K), and what its filters (rows) and inputs (features) are made of."""

    value: Tensor
    source: fx.Node
    rows: Tensor
    features: Tensor
    groups: int = 1
    transposed: bool = False

    @property
    def filters(self) -> int:
        """N."""
        return len(self.rows) * (self.groups if self.transposed else 1)


def _fresh(call: Call, inputs: Tensor, weight: _Weight, bias: Traced | None, axis: int) -> Tensor:
    """Write the kernel call down, and give each of its outputs a label of its own."""
    channels, parameters = _own_parameters(call, weight)
    if bias is not None and bias.labelled:
        parameters += _row_parameters(call, bias.labels.reshape(-1), channels, known=set())
    parameters = list(dict.fromkeys(parameters))
    layer = _layer_name(call, parameters, weight.source)
    call.filter_calls.append(
        FilterCall(
            layer=layer,
            node=call.node,
            inputs=inputs,
            channels=channels,
            parameters=tuple(parameters),
            weight=weight.value.detach(),
            groups=weight.groups,
            transposed=weight.transposed,
            axis=axis,
        )
    )
    main_rows = parameters[0] if parameters else None
    count = main_rows.channels if main_rows else weight.filters
    return call.table.block("layer", layer, count)[list(channels)]


def _own_parameters(call: Call, weight: _Weight) -> tuple[tuple[int, ...], list[ParameterRows]]:
    """The channel that each filter of the weight is, and the parameters whose rows are those channels."""
    identity = tuple(range(weight.filters))
    if not weight.transposed and len(plain := _block_names(call, weight.rows)) == 1:
        return identity, [call.parameters[plain[0]]]
    made_of = [_rows_of(call, label) for label in weight.rows.tolist()]
    main = None if weight.transposed else _main_parameter(call, made_of)
    if main is None:
        channels, parameters = identity, _without_own_rows(call, made_of, weight)
    else:
        channels = tuple(next(iter(rows[main])) for rows in made_of)
        parameters = [call.parameters[main]]
    known = {rows.name for rows in parameters}
    return channels, parameters + _row_parameters(call, weight.rows, channels, known)


def _block_names(call: Call, labels: Tensor) -> list[str]:
    """The parameters that share a block of rows, if `labels` are just those rows in order; else none.

    A short way for the most common case.
    """
    first = call.table.members(int(labels[0]))
    block = call.table.block_of(next(iter(first))) if len(first) == 1 else None
    if block is None or block.kind != "row" or block.count != len(labels):
        return []
    same = torch.equal(labels, call.table.block("row", block.name, block.count))
    return sorted(call.rows[block.name]) if same else []


_Rows = dict[str, set[int]]


def _rows_of(call: Call, label: int) -> _Rows:
    """parameter name -> its rows in the set."""
    rows: _Rows = {}
    for writer in call.table.members(label):
        block = call.table.block_of(writer)
        for name in call.rows[block.name] if block.kind == "row" else ():
            rows.setdefault(name, set()).add(writer - block.start)
    return rows


def _main_parameter(call: Call, made_of: Sequence[_Rows]) -> str | None:
    """The largest parameter of which every filter is made from exactly one row, each from another."""
    common = reduce(set.intersection, (set(rows) for rows in made_of))
    own = [
        name
        for name in common
        if all(len(rows[name]) == 1 for rows in made_of)
        and len(set[int]().union(*(rows[name] for rows in made_of))) == len(made_of)
    ]
    return max(own, key=lambda name: (call.parameters[name].numel, name), default=None)


def _without_own_rows(call: Call, made_of: Sequence[_Rows], weight: _Weight) -> list[ParameterRows]:
    """Parameters whose rows run along the inputs (transposed layouts), or are coupled (spectral norm)."""
    across = [_rows_of(call, label) for label in weight.features.tolist()]
    found = []
    for name in sorted({name for rows in made_of for name in rows}):
        shape = call.parameters[name].shape
        along_inputs = all(rows.get(name) == {index} for index, rows in enumerate(across))
        if weight.transposed:
            if shape == tuple(weight.value.shape):
                found.append(ParameterRows(name, shape, axis=1, groups=weight.groups))
        elif len(shape) == 2 and along_inputs and shape[1] == weight.filters:
            found.append(ParameterRows(name, shape, axis=1))
        elif shape[:1] == (weight.filters,) and all(
            n in rows.get(name, ()) for n, rows in enumerate(made_of)
        ):
            found.append(ParameterRows(name, shape))
    return found


def _row_parameters(
    call: Call, labels: Tensor, channels: tuple[int, ...], known: set[str]
) -> list[ParameterRows]:
    """Parameters (bias, gains) of which row n is used by channel n alone, given what each channel is made of."""
    if len(labels) != len(channels):
        return []
    if channels == tuple(range(len(channels))) and (plain := _block_names(call, labels)):
        return [call.parameters[name] for name in plain if name not in known]
    made_of = [_rows_of(call, label) for label in labels.tolist()]
    return [
        call.parameters[name]
        for name in sorted({name for rows in made_of for name in rows} - known)
        if all(rows.get(name) == {channel} for channel, rows in zip(channels, made_of, strict=True))
    ]


def _layer_name(call: Call, parameters: Sequence[ParameterRows], source: fx.Node) -> str:
    """The parameter's name without ".weight"; for a computed weight the module that ran."""
    name = parameters[0].name if parameters else ""
    if name.endswith(".weight"):
        layer = name.removesuffix(".weight")
    else:
        direct = alias_root(source).meta.get("parameter")
        layer = direct or call.node.meta["module"] or name or call.node.name
    # One weight along both axes (tied encoder and decoder): two layers, each with filters of its own.
    turned = any(
        known.layer == layer and known.parameters[:1] != tuple(parameters[:1]) for known in call.filter_calls
    )
    return f"{layer}.T" if turned else layer
