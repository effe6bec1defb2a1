"""graph + rules -> ChannelMap: which producers and carriers reach every input channel of every consumer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from tgdsurgery.capture import capture
from tgdsurgery.copying import copy_model
from tgdsurgery.errors import CaptureError, MapConflictError, PlanError
from tgdsurgery.inputs import Arguments, arguments_for, repeated
from tgdsurgery.labels import Block
from tgdsurgery.propagate import STATISTICS, OnUnknown, Propagation, propagate
from tgdsurgery.records import ChannelMap, Layer, ParameterRows, Producer
from tgdsurgery.rules import KernelCall, seed_axis

# Modules whose output is their input, channel by channel, with their own parameters on it.
_CARRIER_MODULES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)


@dataclass(frozen=True)
class ConsumerWeight:
    """The weight a consumer was run with: (N, C/g, *K), or (C, N/g, *K) if transposed."""

    weight: Tensor
    groups: int
    transposed: bool


@dataclass(frozen=True)
class MappedModel:
    """A channel map with the weights that its consumers were run with."""

    channels: ChannelMap
    weights: Mapping[str, ConsumerWeight]


def channel_map(
    model: nn.Module, example_inputs: object = None, *, on_unknown: OnUnknown = "raise"
) -> ChannelMap:
    """Find out which filters feed each input channel of each conv, transposed conv and linear layer.

    Args:
        model: any network whose forward runs; it is not modified.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; found if None.
        on_unknown: "raise" stops at an op without a rule; "mix" lets every output of it depend on all inputs.

    Returns:
        The map, the same for train and eval mode.

    Raises:
        CaptureError: the model does not run, or no example input could be found.
        UnsupportedOpError: an op without a rule.
        MapConflictError: train and eval mode map the same layer differently.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3))
        >>> found = channel_map(net)
        >>> found.consumers
        ('0', '2')
        >>> [sorted(s) for s in found.producers("2")]
        [[Producer(layer='0', channel=0)], [Producer(layer='0', channel=1)]]
    """
    return map_model(model, arguments_for(model, example_inputs), on_unknown=on_unknown).channels


def map_model(model: nn.Module, arguments: Arguments, *, on_unknown: OnUnknown = "raise") -> MappedModel:
    """The channel map of `model` in eval and in train mode, which must agree, and its consumers' weights."""
    if on_unknown not in get_args(OnUnknown):
        raise PlanError(f"on_unknown is {on_unknown!r}.", 'It can be "raise" or "mix".')
    trial = copy_model(model)
    evaluated = _map_run(trial, arguments, training=False, on_unknown=on_unknown)
    try:
        trained = _map_run(trial, arguments, training=True, on_unknown=on_unknown)
    except CaptureError:
        # Batch norm cannot train on one value per channel.
        trained = _map_run(trial, repeated(arguments), training=True, on_unknown=on_unknown)
    return _merged(evaluated, trained, model)


def _map_run(trial: nn.Module, arguments: Arguments, *, training: bool, on_unknown: OnUnknown) -> MappedModel:
    found = propagate(capture(trial, *arguments, training=training), on_unknown)
    return _Collector(found, trial).collect()


def _merged(evaluated: MappedModel, trained: MappedModel, model: nn.Module) -> MappedModel:
    """Both runs together: heads that only one of them has are added, what both have must agree."""
    first, second = evaluated.channels, trained.channels
    for name in first.inputs.keys() & second.inputs.keys():
        for channel, (a, b) in enumerate(zip(_reached(first, name), _reached(second, name), strict=True)):
            if a != b:
                raise MapConflictError(
                    f"Input channel {channel} of {name!r} has other producers in train mode than in eval mode: "
                    f"{_short(b - a)} only in train, {_short(a - b)} only in eval.",
                    "Remove the difference between the two modes, or apply TGD to the submodules that agree.",
                )
    sets = first.sets + second.sets
    extra = {name: tuple(i + len(first.sets) for i in ids) for name, ids in second.inputs.items()}
    layers = {**second.layers, **first.layers}
    mapped = {rows.name for layer in layers.values() for rows in layer.parameters}
    whole = ChannelMap(
        layers={name: layers[name] for name in dict.fromkeys([*first.layers, *second.layers])},
        inputs={**first.inputs, **{name: ids for name, ids in extra.items() if name not in first.inputs}},
        sets=sets,
        unmapped={name: p.numel() for name, p in model.named_parameters() if name not in mapped},
        mixed=tuple(sorted({*first.mixed, *second.mixed})),
    )
    return MappedModel(whole, {**trained.weights, **evaluated.weights})


def _reached(channels: ChannelMap, name: str) -> list[frozenset[Producer]]:
    return [channels.sets[index] for index in channels.inputs[name]]


def _short(producers: frozenset[Producer]) -> str:
    names = [f"{producer.layer}[{producer.channel}]" for producer in sorted(producers)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "none"


class _Collector:
    """Turns the labels of one run into layers and producers."""

    def __init__(self, found: Propagation, model: nn.Module) -> None:
        self.found = found
        self.modules = dict(model.named_modules())
        self.calls: dict[str, list[KernelCall]] = {}
        for call in found.kernels:
            self.calls.setdefault(call.layer, []).append(call)
        self.rows: dict[str, dict[str, ParameterRows]] = {}  # layer -> its parameters
        self.owner: dict[str, str] = {}  # parameter -> its layer
        self._sets: dict[frozenset[Producer], int] = {}
        self._translated: dict[int, frozenset[Producer]] = {}
        self._writers: list[list[Producer]] = []

    def collect(self) -> MappedModel:
        """All layers, then the sets that reach the consumers."""
        self._own_parameters()
        self._writers = [known for block in self.found.table.blocks for known in self._producers(block)]
        layers = {name: self._layer(name) for name in self._execution_order()}
        inputs = {name: tuple(self._reached(calls)) for name, calls in self.calls.items()}
        mixed = tuple(sorted(self.found.mixed))
        channels = ChannelMap(layers, inputs, tuple(self._sets), mixed=mixed)
        return MappedModel(channels, {name: _weight(calls) for name, calls in self.calls.items()})

    def _own_parameters(self) -> None:
        layouts: dict[str, set[tuple[str, ParameterRows]]] = {}
        for name, calls in self.calls.items():
            for rows in (rows for call in calls for rows in call.parameters):
                layouts.setdefault(rows.name, set()).add((name, rows))
        # A weight used along one axis here and another there (tied encoder and decoder) has no rows of its
        # own: no layer gets it, and so it stays frozen.
        torn = {parameter for parameter, uses in layouts.items() if len(uses) > 1}
        for name, calls in self.calls.items():
            own = {rows.name: rows for call in calls for rows in call.parameters if rows.name not in torn}
            self.rows[name] = own
            self.owner.update(dict.fromkeys(own, name))
        for parameter, shape in self.found.parameters.items():
            if parameter not in self.owner and parameter not in torn:
                owner = self._bias_owner(parameter, shape) or self._carrier_name(parameter)
                rows = ParameterRows(parameter, tuple(shape), axis=seed_axis(shape))
                self.rows.setdefault(owner, {})[parameter] = rows
                self.owner[parameter] = owner

    def _bias_owner(self, parameter: str, shape: Sequence[int]) -> str | None:
        """The filter layer whose bias this is, where the bias was added by an op of its own."""
        head, _, leaf = parameter.rpartition(".")
        weight = f"{head}.{leaf.replace('bias', 'weight')}".lstrip(".")
        layer = self.owner.get(weight) if "bias" in leaf else None
        return layer if layer in self.calls and [self._count(layer)] == list(shape) else None

    def _carrier_name(self, parameter: str) -> str:
        """The module, if this is all a norm or PReLU has; else the parameter itself."""
        head, _, leaf = parameter.rpartition(".")
        is_module = leaf in ("weight", "bias", *STATISTICS) and head and head not in self.calls
        return head if is_module else parameter

    def _execution_order(self) -> list[str]:
        # Parameters are listed as they were first read; layers without one of their own come last.
        return list(
            dict.fromkeys([*(self.owner[p] for p in self.found.parameters if p in self.owner), *self.calls])
        )

    def _count(self, layer: str) -> int:
        """N."""
        for rows in self.rows[layer].values():
            return rows.channels
        return max(max(call.channels) for call in self.calls[layer]) + 1

    def _layer(self, name: str) -> Layer:
        calls = self.calls.get(name, [])
        rows = self.rows[name].values()
        where = {str(call.node.meta["module"]) for call in calls} if calls else {name} & self.modules.keys()
        layer = Layer(
            name=name,
            role="filter" if calls else "carrier",
            type=" ".join(sorted(type(self.modules[path]).__name__ for path in where)) or "Parameter",
            channels=self._count(name),
            parameters=tuple(row for row in rows if row.name.rpartition(".")[2] not in STATISTICS),
            statistics=tuple(sorted(row.name for row in rows if row.name.rpartition(".")[2] in STATISTICS)),
            channel_axis=calls[0].axis if calls else -1,
            groups=calls[0].groups if calls else 1,
            transposed=calls[0].transposed if calls else False,
        )
        axes = {path: self._axes(layer, path) for path in sorted(where)}
        agreed = {axis for found in axes.values() for axis in found}
        if len(agreed) == 1 and None not in agreed:
            return replace(layer, modules=tuple(axes), channel_axis=next(axis for axis in agreed if axis))
        return layer

    def _axes(self, layer: Layer, path: str) -> set[int | None]:
        """The channel axes of what module `path` returned; None where that is not this layer's output."""
        if layer.role == "carrier" and not isinstance(self.modules[path], _CARRIER_MODULES):
            return {None}
        if layer.role == "filter" and any(
            call.layer != layer.name and f"{call.node.meta['module']}.".startswith(f"{path}." if path else "")
            for call in self.found.kernels
        ):
            return {None}  # A block that calls this filter, among others, by torch.nn.functional.
        returned = [node for node in self.found.returned if path in node.meta["returned_by"]]
        return {self._axis(layer, node) for node in returned} or {None}

    def _axis(self, layer: Layer, node: fx.Node) -> int | None:
        """The axis along which `node` has channel 0, 1, ... of the layer, from the end."""
        labels = self.found.returned[node]
        if layer.channels == 1:
            return layer.channel_axis
        axes = [axis for axis, size in enumerate(labels.shape) if size == layer.channels]
        for axis in axes:
            by_channel = labels.movedim(axis, 0).flatten(1)
            if by_channel.shape[1] > 1:
                by_channel = by_channel.unique(dim=1)
            if all(self._is_channel(layer, n, row) for n, row in enumerate(by_channel.tolist())):
                return axis - labels.dim()
        return None

    def _is_channel(self, layer: Layer, channel: int, labels: Sequence[int]) -> bool:
        """Whether these elements are all written by that channel of the layer, and a filter's by nobody else."""
        wanted = Producer(layer.name, channel)
        for label in labels:
            producers = [
                producer for writer in self.found.table.members(label) for producer in self._writers[writer]
            ]
            own = [producer for producer in producers if producer.layer == layer.name]
            if not own or any(producer != wanted for producer in own):
                return False
            if layer.role == "filter" and len(own) != len(producers):
                return False
        return True

    def _reached(self, calls: Sequence[KernelCall]) -> list[int]:
        united = calls[0].inputs
        for call in calls[1:]:
            united = self.found.table.union(united, call.inputs)
        return [self._sets.setdefault(self._translate(label), len(self._sets)) for label in united.tolist()]

    def _translate(self, label: int) -> frozenset[Producer]:
        if label not in self._translated:
            writers = self.found.table.members(label)
            self._translated[label] = frozenset(p for writer in writers for p in self._writers[writer])
        return self._translated[label]

    def _producers(self, block: Block) -> list[list[Producer]]:
        """What each writer of a block stands for: its channel; none if the parameter stays frozen anyway."""
        if block.kind == "layer":
            return [[Producer(block.name, index)] for index in range(block.count)]
        name = self.found.rows[block.name][0]
        if name not in self.owner:
            return [[]] * block.count
        owner = self.owner[name]
        rows = self.rows[owner][name]
        if rows.axis == seed_axis(rows.shape) and rows.groups == 1:
            return [[Producer(owner, index)] for index in range(block.count)]
        return [[Producer(owner, channel) for channel in range(rows.channels)]] * block.count


def _weight(calls: Sequence[KernelCall]) -> ConsumerWeight:
    """All filters a consumer was run with; attention's packed projections are run slice by slice."""
    distinct = {call.channels: call.weight for call in calls}
    weights = list(distinct.values())
    whole = weights[0] if len(weights) == 1 else torch.cat(weights)
    return ConsumerWeight(whole, calls[0].groups, calls[0].transposed)
