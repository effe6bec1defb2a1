"""What a rule is given: tensors with their labels, and the call, where the run of a filter layer is written down.

A weight is recognised by what it is made of: parameter rows and nothing from the input. Which output
channel belongs to which row is read off the labels, so that a weight that was permuted, sliced
(attention's packed projections) or computed (weight norm, standardisation) is still followed exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, fx

from tgdsurgery.core.errors import UnsupportedOpError
from tgdsurgery.core.records import ParameterRows
from tgdsurgery.core.torch_private import OpOverload
from tgdsurgery.mapping.labels import LabelTable
from tgdsurgery.mapping.nodes import alias_root, op_of, place_of


@dataclass(frozen=True)
class Traced:
    """A tensor argument as a rule sees it.

    Args:
        labels: int64, the tensor's shape: who writes each element.
        labelled: False if `labels` is all empty because nothing but the network's input is behind it.
        value: the tensor itself where it does not depend on the network's input, else None.
        shape: the tensor's shape.
        dtype: the tensor's dtype.
        source: the node that made it.
    """

    labels: Tensor
    labelled: bool
    value: Tensor | None
    shape: torch.Size
    dtype: torch.dtype
    source: fx.Node


@dataclass(frozen=True)
class FilterCall:
    """One run of a filter layer: what reached its inputs, and what its outputs are made of.

    Args:
        layer: its name.
        node: the op in the captured graph.
        inputs: (C,) labels per input channel.
        channels: which channel of the layer each output channel of this call is.
        parameters: the parameters whose rows are those channels.
        weight: the weight that was used, (N, C/g, *K), or (C, N/g, *K) if transposed.
        groups: groups of the conv.
        transposed: whether it is a transposed conv.
        axis: the axis of the output that counts the channels, from the end.
    """

    layer: str
    node: fx.Node
    inputs: Tensor
    channels: tuple[int, ...]
    parameters: tuple[ParameterRows, ...]
    weight: Tensor
    groups: int
    transposed: bool
    axis: int


@dataclass(frozen=True)
class Call:
    """The op call a rule is asked about, and where calls of filter layers are written down.

    Args:
        node: the op in the captured graph.
        table: the sets behind the labels.
        parameters: every parameter that was read, by name, with the rows that are its writers.
        rows: names of the parameters that share a block of rows, by the block's name.
        filter_calls: where a rule of a filter layer leaves its `FilterCall`.
    """

    node: fx.Node
    table: LabelTable
    parameters: Mapping[str, ParameterRows]
    rows: Mapping[str, Sequence[str]]
    filter_calls: list[FilterCall]

    @property
    def op(self) -> OpOverload:
        """The ATen (or custom) op."""
        return op_of(self.node)

    @property
    def shape(self) -> torch.Size:
        """Shape of the (first) output."""
        val = self.node.meta["val"]
        return (val if isinstance(val, Tensor) else val[0]).shape

    def filter(
        self,
        inputs: Traced,
        weight: Traced,
        bias: Traced | None = None,
        *,
        groups: int = 1,
        transposed: bool = False,
    ) -> Tensor:
        """Say that the op is a filter layer: its kernels score its inputs, and its filters are producers.

        Args:
            inputs: (B, C, *) with as many axes of space as a kernel has; (..., C) where it has none.
            weight: (N, C/g, *K), or (C, N/g, *K) if transposed.
            bias: (N,).
            groups: groups of the channels.
            transposed: whether the weight is laid out as that of a transposed conv.

        Returns:
            The labels of the output's channels, to be broadcast to (B, N, *). What else the output depends on
            (offsets, a mask) has to be united with them.
        """
        space = len(weight.shape) - 2
        axis = -space - 1
        read, held = inputs.shape[axis], weight.shape[0] if transposed else weight.shape[1] * groups
        if read != held:
            raise ValueError(
                f"{read} input channels do not fit a weight of {tuple(weight.shape)}, groups {groups}"
            )
        others = [dim for dim in range(len(inputs.shape)) if dim != axis + len(inputs.shape)]
        channels = self.table.reduce(inputs.labels, others).flatten()
        if is_weight(weight):
            fresh = fresh_labels(self, channels, Weight.of(self, weight, groups, transposed), bias, axis)
        else:
            fresh = _mixed_by_group(self, channels, weight, bias, groups=groups, transposed=transposed)
        return fresh.reshape(-1, *[1] * space)


def _mixed_by_group(
    call: Call, inputs: Tensor, weight: Traced, bias: Traced | None, *, groups: int, transposed: bool
) -> Tensor:
    """Fixed kernels (blur pooling) and kernels made from the input (dynamic conv): a group's channels mix.

    For a depthwise kernel a group is one channel, which then passes as it is.
    """
    table = call.table
    by_group = table.reduce(inputs.reshape(groups, -1), [1])
    outputs = weight.shape[1] if transposed else weight.shape[0] // groups  # of a group
    mixed = by_group.expand(groups, outputs).reshape(-1)
    if weight.labelled:
        mixed = table.union(mixed, table.mix(weight.labels))
    return mixed if bias is None else table.union(mixed, bias.labels)


def is_weight(tensor: Traced) -> bool:
    """Made of parameter rows, independent of the input."""
    return tensor.value is not None and tensor.labelled and tensor.value.is_floating_point()


@dataclass(frozen=True)
class Weight:
    """A weight, (N, C/g, *K) or (C, N/g, *K), and what its filters (rows) and inputs (features) are made of."""

    value: Tensor
    source: fx.Node
    rows: Tensor
    features: Tensor
    groups: int = 1
    transposed: bool = False

    @classmethod
    def of(cls, call: Call, tensor: Traced, groups: int = 1, transposed: bool = False) -> Weight:
        """The weight that an op was given."""
        assert tensor.value is not None
        space = range(2, len(tensor.shape))
        ends = [call.table.reduce(tensor.labels, [end, *space]).flatten() for end in (1, 0)]
        rows, features = reversed(ends) if transposed else ends
        return cls(tensor.value, tensor.source, rows, features, groups, transposed)

    @property
    def filters(self) -> int:
        """N."""
        return len(self.rows) * (self.groups if self.transposed else 1)


def fresh_labels(call: Call, inputs: Tensor, weight: Weight, bias: Traced | None, axis: int) -> Tensor:
    """Write the call of a filter layer down, and give each of its outputs a label of its own."""
    _refuse_unknown(call, inputs)
    channels, parameters = _own_parameters(call, weight)
    biases = (
        _row_parameters(call, bias.labels.reshape(-1), channels, set()) if bias and is_weight(bias) else []
    )
    parameters = list(dict.fromkeys([*parameters, *biases]))
    layer = _layer_name(call, parameters, weight.source)
    call.filter_calls.append(
        FilterCall(
            layer=layer,
            node=call.node,
            inputs=inputs.clone(),  # the labels of memory that may be written later
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
    fresh = call.table.block("layer", layer, count)
    if channels != tuple(range(count)):
        fresh = fresh[list(channels)]
    # A bias that is not the filters' own: made from the input, or of a parameter in another order.
    return fresh if bias is None or biases else call.table.union(fresh, bias.labels)


def _refuse_unknown(call: Call, inputs: Tensor) -> None:
    """Raise if the example picked no elements, and others would have come here."""
    nothing = call.table.unknown
    here = f"{place_of(call.node)} by the op {call.node.target} (node {call.node.name})"
    reached = call.table.members(int(call.table.mix(inputs))) if nothing else ()
    chosen = next(
        (block.name for block in nothing if block.start in reached), here if 0 in call.shape else ""
    )
    if chosen:
        raise UnsupportedOpError(
            f"In the example nothing is picked by {chosen}, so what feeds the filter layer in module {here} is not "
            "known: a detector that has found no object of some size, say.",
            "Give example_inputs in which it finds something, or apply TGD to the part of the model that comes before "
            "it (model.backbone = apply_tgd(model.backbone, ...)).",
        )


def _own_parameters(call: Call, weight: Weight) -> tuple[tuple[int, ...], list[ParameterRows]]:
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


def _without_own_rows(call: Call, made_of: Sequence[_Rows], weight: Weight) -> list[ParameterRows]:
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
