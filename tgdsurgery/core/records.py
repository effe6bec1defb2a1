"""The data that the stages hand on: layers, their parameters, the channel map, scores. Frozen and comparable.

Axis letters: N output channels (filters) of a layer, C input channels, K spatial sizes of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import LongTensor, Tensor

Role = Literal["filter", "channel"]


class Producer(NamedTuple):
    """One output channel of one layer: a filter, or a channel layer's channel."""

    layer: str
    channel: int


@dataclass(frozen=True)
class ParameterRows:
    """A parameter of a layer, and which of the layer's channels each of its entries belongs to.

    Args:
        name: name in the model's `state_dict`.
        shape: the parameter's shape.
        axis: the axis that counts the channels (1 for a transposed conv, whose weight is (C, N/g, *K)).
        groups: groups of a transposed conv; 1 otherwise.
        requires_grad: False if the user froze the parameter before the plan was made.
    """

    name: str
    shape: tuple[int, ...]
    axis: int = 0
    groups: int = 1
    requires_grad: bool = True

    @property
    def numel(self) -> int:
        """Number of entries."""
        return torch.Size(self.shape).numel()

    @property
    def channels(self) -> int:
        """How many channels its entries belong to."""
        return self.shape[self.axis] * self.groups if self.shape else 1

    def owner(self) -> LongTensor:
        """The channel of every entry: integers of shape `shape`, expanded (no memory of that size).

        >>> ParameterRows("up.weight", (4, 1, 1), axis=1, groups=2).owner().flatten().tolist()
        [0, 0, 1, 1]
        """
        if not self.shape:
            return torch.zeros((), dtype=torch.int64)  # type: ignore[return-value]
        size = self.shape[self.axis]
        channel = torch.arange(size).view([size if d == self.axis else 1 for d in range(len(self.shape))])
        if self.groups > 1:
            group = torch.arange(self.shape[0]) // (self.shape[0] // self.groups)
            channel = channel + size * group.view([-1] + [1] * (len(self.shape) - 1))
        return channel.expand(self.shape)  # type: ignore[return-value]


@dataclass(frozen=True)
class Layer:
    """A filter layer (conv, transposed conv, linear) or a channel layer (norm affine, PReLU, layer scale).

    Args:
        name: the module's name, or the parameter's name if no module of its own runs the layer.
        role: "filter" or "channel".
        type: class name of the module that ran it, for display.
        channels: N, the number of output channels.
        parameters: its parameters and how their entries belong to channels; weight first.
        statistics: names of its running mean and variance (N,), if it keeps them.
        modules: the modules whose output *is* this layer's output; empty for a functional call.
        channel_axis: axis of the channels in that output, counted from the end (-3 for conv2d).
        groups: groups of the conv.
        transposed: whether the weight is laid out (C, N/g, *K).
    """

    name: str
    role: Role
    type: str
    channels: int
    parameters: tuple[ParameterRows, ...]
    statistics: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    channel_axis: int = -1
    groups: int = 1
    transposed: bool = False

    @property
    def frozen_by_user(self) -> bool:
        """Whether none of its parameters requires a gradient."""
        return bool(self.parameters) and not any(rows.requires_grad for rows in self.parameters)

    def entries_of(self, channels: int) -> int:
        """Number of parameter entries that training moves if so many of its channels are trainable."""
        movable = sum(rows.numel for rows in self.parameters if rows.requires_grad)
        return round(movable / self.channels * channels)


@dataclass(frozen=True)
class ChannelMap:
    """Per consumer and input channel: the producers that reach it, and the channel layers on the way.

    Args:
        layers: every filter layer and channel layer by name, in execution order.
        inputs: for each consumer, one index into `sets` per input channel (per input feature of a linear layer).
        sets: the distinct sets of producers and channel layers.
        unmapped: parameters that belong to no layer, with their number of entries; they are never trained.
        mixed: ops without a rule that were let through by `on_unknown="mix"`.
    """

    layers: Mapping[str, Layer]
    inputs: Mapping[str, tuple[int, ...]]
    sets: tuple[frozenset[Producer], ...]
    unmapped: Mapping[str, int] = field(default_factory=dict)
    mixed: tuple[str, ...] = ()

    @property
    def consumers(self) -> tuple[str, ...]:
        """Names of the layers that read channels, in execution order."""
        return tuple(self.inputs)

    def producers(self, name: str) -> tuple[frozenset[Producer], ...]:
        """Per input channel of `name`, the filters that reach it without passing another filter.

        A channel of the network's own input has none. A layer called several times unites its calls.
        """
        filters, _ = self._split
        return tuple(filters[index] for index in self.inputs[name])

    def channel_layers(self, name: str) -> tuple[frozenset[Producer], ...]:
        """Per input channel of `name`, the channel layers' channels it passed through."""
        _, channel_layers = self._split
        return tuple(channel_layers[index] for index in self.inputs[name])

    @cached_property
    def _split(self) -> tuple[list[frozenset[Producer]], list[frozenset[Producer]]]:
        filters = [frozenset(p for p in s if self.layers[p.layer].role == "filter") for s in self.sets]
        return filters, [whole - part for whole, part in zip(self.sets, filters, strict=True)]


@dataclass(frozen=True)
class LayerScores:
    """KSE gathered onto one layer's own output channels.

    Args:
        layer: the layer.
        scores: (N,) float64 in [0, 1]; NaN where the channel reaches no consumer.
    """

    layer: Layer
    scores: Tensor
