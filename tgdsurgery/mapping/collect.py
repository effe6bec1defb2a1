"""Labels of one run -> layers, their parameters, and the producers of every input channel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from tgdsurgery.core.norm_statistics import STATISTICS
from tgdsurgery.core.records import ChannelMap, Layer, ParameterRows, Producer
from tgdsurgery.core.torch_private import NormBase
from tgdsurgery.mapping.labels import Block
from tgdsurgery.mapping.propagate import Propagation
from tgdsurgery.mapping.rules.call import FilterCall

# Modules whose output is their input, channel by channel, with their own parameters on it. So is that of others that
# keep running statistics.
_CHANNEL_LAYERS = (NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)


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


class Collector:
    """Turns the labels of one run into layers and producers.

    What was collected `after` another run is added to what that one found: the runs are mostly alike. `still` are
    the running statistics that training does not change: they are like any buffer.
    """

    def __init__(
        self, found: Propagation, model: nn.Module, still: Collection[str], after: Collector | None = None
    ) -> None:
        self.found = found
        self.still = still
        self.after = after
        self.modules = dict(model.named_modules())
        self.calls: dict[str, list[FilterCall]] = {}
        for call in found.filter_calls:
            self.calls.setdefault(call.layer, []).append(call)
        self.rows: dict[str, dict[str, ParameterRows]] = {}  # layer -> its parameters
        self.owner: dict[str, str] = {}  # parameter -> its layer
        self.layers: dict[str, Layer] = {}
        self._sets: dict[frozenset[Producer], int] = after._sets if after else {}
        self._singles: dict[tuple[str, int], Sequence[tuple[Producer]]] = after._singles if after else {}
        self._writers: list[Sequence[Producer]] = []  # what each writer stands for
        self._one: list[Producer | None] = []  # the same, None where it stands for none or several
        self._blocks: dict[str, list[Block]] = {}  # layer -> its writers
        self._returned: dict[str, list[fx.Node]] = {}  # module -> what it returned
        self._indices: dict[int, int] = {}  # label -> index of its set

    def collect(self) -> MappedModel:
        """All layers, then the sets that reach the consumers."""
        self._own_parameters()
        for block in self.found.table.blocks:
            producers = self._producers(block)
            self._writers += producers
            for producer in producers[0][:1] if producers else ():
                self._blocks.setdefault(producer.layer, []).append(block)
        self._one = [producers[0] if len(producers) == 1 else None for producers in self._writers]
        for node in self.found.returned:
            for path in node.meta["returned_by"]:
                self._returned.setdefault(path, []).append(node)
        if self.after and self._writers[: len(self.after._writers)] == self.after._writers:
            self._indices = self.after._indices
        layers = self.after.layers if self.after else {}
        self.layers = {name: layers.get(name) or self._layer(name) for name in self._execution_order()}
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
            if parameter not in self.owner and parameter not in torn and parameter not in self.still:
                owner = self._bias_owner(parameter, rows.shape) or self._channel_layer_name(parameter)
                self.rows.setdefault(owner, {})[parameter] = rows
                self.owner[parameter] = owner

    def _bias_owner(self, parameter: str, shape: Sequence[int]) -> str | None:
        """The filter layer whose bias this is, where the bias was added by an op of its own."""
        head, _, leaf = parameter.rpartition(".")
        weight = f"{head}.{leaf.replace('bias', 'weight')}".lstrip(".")
        layer = self.owner.get(weight) if "bias" in leaf else None
        return layer if layer in self.calls and [self._count(layer)] == list(shape) else None

    def _channel_layer_name(self, parameter: str) -> str:
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
            role="filter" if calls else "channel",
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
        known = isinstance(self.modules[path], _CHANNEL_LAYERS) or layer.statistics
        if layer.role == "channel" and not known:
            return {None}
        if layer.role == "filter" and any(
            call.layer != layer.name and f"{call.node.meta['module']}.".startswith(f"{path}." if path else "")
            for call in self.found.filter_calls
        ):
            return {None}  # A block that calls this filter, among others, by torch.nn.functional.
        return {self._axis(layer, node) for node in self._returned.get(path, ())} or {None}

    def _axis(self, layer: Layer, node: fx.Node) -> int | None:
        """The axis along which `node` has channel 0, 1, ... of the layer, from the end."""
        labels = self.found.returned[node]
        if layer.channels == 1:
            return layer.channel_axis
        axes = [axis for axis, size in enumerate(labels.shape) if size == layer.channels]
        for axis in axes:
            by_channel = labels.movedim(axis, 0).reshape(layer.channels, -1)
            if by_channel.shape[1] > 1:
                by_channel = by_channel.unique(dim=1)
            if self._are_channels(layer, by_channel):
                return axis - labels.dim()
        return None

    def _are_channels(self, layer: Layer, labels: Tensor) -> bool:
        """Whether row n is all written by channel n of the layer, by no other, and a filter's by nobody else."""
        own: dict[int, int | None] = {}  # writer -> the channel it stands for, if it is one
        for block in self._blocks.get(layer.name, ()):
            fresh = self.found.table.block(block.kind, block.name, block.count)
            if block.kind == "layer" and torch.equal(labels.flatten(), fresh):
                return True  # what comes out of a filter layer, in most cases
            for writer in range(block.start, block.start + block.count):
                producer = self._one[writer]
                own[writer] = producer.channel if producer else None
        for channel, row in enumerate(labels.tolist()):
            for label in row:
                writers = self.found.table.members(label)
                written = writers & own.keys()
                if {own[writer] for writer in written} != {channel}:
                    return False
                if layer.role == "filter" and any(self._writers[writer] for writer in writers - written):
                    return False
        return True

    def _reached(self, calls: Sequence[FilterCall]) -> list[int]:
        united = calls[0].inputs
        for call in calls[1:]:
            united = self.found.table.union(united, call.inputs)
        indices, sets, one, members = self._indices, self._sets, self._one, self.found.table.members
        reached = []
        for label in united.tolist():
            index = indices.get(label)
            if index is None:
                alone: Any = frozenset(map(one.__getitem__, members(label)))
                producers = self._several(members(label)) if None in alone else alone
                index = indices[label] = sets.setdefault(producers, len(sets))
            reached.append(index)
        return reached

    def _several(self, writers: frozenset[int]) -> frozenset[Producer]:
        """What the writers stand for, where some stand for none or several."""
        return frozenset(chain.from_iterable(map(self._writers.__getitem__, writers)))

    def _producers(self, block: Block) -> Sequence[Sequence[Producer]]:
        """What each writer of a block stands for: its channel; none if the parameter stays frozen anyway."""
        if block.kind == "layer":
            return self._channels(block.name, block.count)
        name = next((name for name in self.found.rows.get(block.name, ()) if name in self.owner), None)
        if name is None:
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


def _weight(calls: Sequence[FilterCall]) -> ConsumerWeight:
    """All filters a consumer was run with; attention's packed projections are run slice by slice."""
    distinct = {call.channels: call.weight for call in calls}
    weights = list(distinct.values())
    whole = weights[0] if len(weights) == 1 else torch.cat(weights)
    return ConsumerWeight(whole, calls[0].groups, calls[0].transposed)
