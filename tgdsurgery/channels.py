"""graph + rules -> ChannelMap: which producers and carriers reach every input channel of every consumer."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from tgdsurgery.capture import capture
from tgdsurgery.copying import copy_model, refuse_unfit
from tgdsurgery.errors import CaptureError, MapConflictError, PlanError
from tgdsurgery.inputs import Arguments, arguments_for, repeated
from tgdsurgery.labels import Block, LabelTable
from tgdsurgery.propagate import STATISTICS, OnUnknown, Propagation, propagate
from tgdsurgery.records import ChannelMap, Layer, ParameterRows, Producer
from tgdsurgery.rules import KernelCall

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
        CaptureError: the model does not run, is TorchScript or uninitialised, or no example input could be found.
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
    refuse_unfit(model)
    with _without_cycle_collection():
        return _mapped(model, arguments, on_unknown)


def _mapped(model: nn.Module, arguments: Arguments, on_unknown: OnUnknown) -> MappedModel:
    trial, table = copy_model(model), LabelTable()
    evaluated = propagate(capture(trial, *arguments, training=False), table, on_unknown)
    try:
        run = capture(trial, *arguments, training=True)
    except CaptureError:
        # Batch norm cannot train on one value per channel.
        run = capture(trial, *repeated(arguments), training=True)
    trained = propagate(run, table, on_unknown)
    first = _Collector(evaluated, trial)
    return _merged(first.collect(), _Collector(trained, trial, after=first).collect(), model)


@contextlib.contextmanager
def _without_cycle_collection() -> Iterator[None]:
    """Large networks make a million small objects, none of them in a cycle: looking for cycles doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _merged(evaluated: MappedModel, trained: MappedModel, model: nn.Module) -> MappedModel:
    """Both runs together: heads that only one of them has are added, what both have must agree.

    The sets of the second run begin with those of the first.
    """
    first, second = evaluated.channels, trained.channels
    for name in first.inputs.keys() & second.inputs.keys():
        for channel, (a, b) in enumerate(zip(first.inputs[name], second.inputs[name], strict=True)):
            if a != b:
                only_trained, only_evaluated = (
                    second.sets[b] - second.sets[a],
                    second.sets[a] - second.sets[b],
                )
                raise MapConflictError(
                    f"Input channel {channel} of {name!r} has other producers in train mode than in eval mode: "
                    f"{_short(only_trained)} only in train, {_short(only_evaluated)} only in eval.",
                    "Remove the difference between the two modes, or apply TGD to the submodules that agree.",
                )
    layers = {**second.layers, **first.layers}
    mapped = {rows.name for layer in layers.values() for rows in layer.parameters}
    whole = ChannelMap(
        layers={name: layers[name] for name in dict.fromkeys([*first.layers, *second.layers])},
        inputs={**second.inputs, **first.inputs},
        sets=second.sets,
        unmapped={name: p.numel() for name, p in model.named_parameters() if name not in mapped},
        mixed=tuple(sorted({*first.mixed, *second.mixed})),
    )
    return MappedModel(whole, {**trained.weights, **evaluated.weights})


def _short(producers: frozenset[Producer]) -> str:
    names = [f"{producer.layer}[{producer.channel}]" for producer in sorted(producers)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "none"


class _Collector:
    """Turns the labels of one run into layers and producers.

    What was collected `after` another run is added to what that one found: the runs are mostly alike.
    """

    def __init__(self, found: Propagation, model: nn.Module, after: _Collector | None = None) -> None:
        self.found = found
        self.after = after
        self.modules = dict(model.named_modules())
        self.calls: dict[str, list[KernelCall]] = {}
        for call in found.kernels:
            self.calls.setdefault(call.layer, []).append(call)
        self.rows: dict[str, dict[str, ParameterRows]] = {}  # layer -> its parameters
        self.owner: dict[str, str] = {}  # parameter -> its layer
        self.layers: dict[str, Layer] = {}
        self._sets: dict[frozenset[Producer], int] = after._sets if after else {}
        self._singles: dict[tuple[str, int], Sequence[tuple[Producer]]] = after._singles if after else {}
        self._writers: list[Sequence[Producer]] = []  # what each writer stands for
        self._indices: dict[int, int] = {}  # label -> index of its set
        self._translated: dict[int, frozenset[Producer]] = {}

    def collect(self) -> MappedModel:
        """All layers, then the sets that reach the consumers."""
        self._own_parameters()
        self._writers = [known for block in self.found.table.blocks for known in self._producers(block)]
        if self.after and self._writers[: len(self.after._writers)] == self.after._writers:
            self._indices, self._translated = self.after._indices, self.after._translated
        known = self.after.layers if self.after else {}
        self.layers = {name: known.get(name) or self._layer(name) for name in self._execution_order()}
        inputs = {name: tuple(self._reached(calls)) for name, calls in self.calls.items()}
        mixed = tuple(sorted(self.found.mixed))
        channels = ChannelMap(self.layers, inputs, tuple(self._sets), mixed=mixed)
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
        for parameter, rows in self.found.parameters.items():
            if parameter not in self.owner and parameter not in torn:
                owner = self._bias_owner(parameter, rows.shape) or self._carrier_name(parameter)
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
            if self._are_channels(layer, by_channel):
                return axis - labels.dim()
        return None

    def _are_channels(self, layer: Layer, labels: Tensor) -> bool:
        """Whether row n is all written by channel n of the layer, by no other, and a filter's by nobody else."""
        for channel, row in enumerate(labels.tolist()):
            for label in row:
                own = {
                    producer.channel if producer.layer == layer.name else None
                    for writer in self.found.table.members(label)
                    for producer in self._writers[writer]
                    if layer.role == "filter" or producer.layer == layer.name
                }
                if own != {channel}:
                    return False
        return True

    def _reached(self, calls: Sequence[KernelCall]) -> list[int]:
        united = calls[0].inputs
        for call in calls[1:]:
            united = self.found.table.union(united, call.inputs)
        return [self._index(label) for label in united.tolist()]

    def _index(self, label: int) -> int:
        index = self._indices.get(label)
        if index is None:
            index = self._sets.setdefault(self._translate(label), len(self._sets))
            self._indices[label] = index
        return index

    def _translate(self, label: int) -> frozenset[Producer]:
        if label not in self._translated:
            writers = self.found.table.members(label)
            self._translated[label] = frozenset(chain.from_iterable(map(self._writers.__getitem__, writers)))
        return self._translated[label]

    def _producers(self, block: Block) -> Sequence[Sequence[Producer]]:
        """What each writer of a block stands for: its channel; none if the parameter stays frozen anyway."""
        if block.kind == "layer":
            return self._channels(block.name, block.count)
        name = self.found.rows.get(block.name, [""])[0]
        if name not in self.owner:
            return [()] * block.count
        owner = self.owner[name]
        rows = self.rows[owner][name]
        if rows == self.found.parameters[name]:
            return self._channels(owner, block.count)
        return [[producer for (producer,) in self._channels(owner, rows.channels)]] * block.count

    def _channels(self, layer: str, count: int) -> Sequence[tuple[Producer]]:
        if (layer, count) not in self._singles:
            self._singles[layer, count] = [(Producer(layer, index),) for index in range(count)]
        return self._singles[layer, count]


def _weight(calls: Sequence[KernelCall]) -> ConsumerWeight:
    """All filters a consumer was run with; attention's packed projections are run slice by slice."""
    distinct = {call.channels: call.weight for call in calls}
    weights = list(distinct.values())
    whole = weights[0] if len(weights) == 1 else torch.cat(weights)
    return ConsumerWeight(whole, calls[0].groups, calls[0].transposed)
