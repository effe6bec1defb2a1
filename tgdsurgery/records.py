"""The data that travels between the stages: frozen, printable, comparable, and the plan as JSON both ways.

Axis letters: N output channels (filters) of a layer, C input channels, K spatial sizes of a kernel.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import BoolTensor, LongTensor, Tensor

from tgdsurgery.errors import PlanError
from tgdsurgery.report import as_text, table

Role = Literal["filter", "carrier"]
Flow = Literal["masked", "full"]
NormStats = Literal["hold", "batch"]
PLAN_FORMAT = "tgdsurgery-plan-1"


class Producer(NamedTuple):
    """One output channel of one layer: a filter, or a carrier's channel."""

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
    """

    name: str
    shape: tuple[int, ...]
    axis: int = 0
    groups: int = 1

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
    """A filter layer (conv, transposed conv, linear) or a carrier (norm affine, PReLU, layer scale).

    Args:
        name: the module's name, or the parameter's where the layer is no module of its own.
        role: "filter" or "carrier".
        type: class name of the module that ran it, for display.
        channels: N, the number of output channels.
        parameters: its parameters and how their entries belong to channels; weight first.
        statistics: names of its running mean and variance (N,), for norms that keep them.
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
    channel_axis: int = 1
    groups: int = 1
    transposed: bool = False

    def entries_of(self, channels: int) -> int:
        """Number of parameter entries that belong to so many of its channels."""
        return round(sum(rows.numel for rows in self.parameters) / self.channels * channels)


@dataclass(frozen=True)
class ChannelMap:
    """For every consumer and each of its input channels: the producers that reach it, and the carriers on the way.

    Args:
        layers: every filter layer and carrier by name, in execution order.
        inputs: for each consumer, one index into `sets` per input channel (per input feature of a linear layer).
        sets: the distinct sets of producers and carriers.
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

    def carriers(self, name: str) -> tuple[frozenset[Producer], ...]:
        """Per input channel of `name`, the carriers' channels it passed through."""
        _, carriers = self._split
        return tuple(carriers[index] for index in self.inputs[name])

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


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer: the score and the decision of every output channel.

    Args:
        layer: the layer.
        scores: score per channel; None where the channel reaches no consumer.
        mask: True where the channel is trainable.
    """

    layer: Layer
    scores: tuple[float | None, ...]
    mask: tuple[bool, ...]

    @property
    def trainable(self) -> int:
        """Number of trainable channels."""
        return sum(self.mask)

    def trainable_entries(self) -> int:
        """Number of parameter entries that belong to trainable channels."""
        return self.layer.entries_of(self.trainable)

    def entries(self) -> int:
        """Number of parameter entries of the layer."""
        return sum(rows.numel for rows in self.layer.parameters)


@dataclass(frozen=True)
class TGDPlan:
    """Which channels of which layers are retrained: the result of scoring, and all that the rewriting needs.

    Prints as a table and goes to JSON and back. Args are the settings it was made with and:
        entries: one per filter layer and carrier, in execution order.
        unmapped: parameters that belong to no layer, with their number of entries; frozen.
        mixed: ops without a rule that were let through by `on_unknown="mix"`.
    """

    phi: float
    budget: float | None
    k: int
    alpha: float
    flow: Flow
    norm_stats: NormStats
    entries: tuple[LayerPlan, ...]
    unmapped: Mapping[str, int] = field(default_factory=dict)
    mixed: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> TGDPlan:
        """Itself: nothing in it changes, and networks are copied with their plan."""
        return self

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of every filter layer and carrier, in execution order."""
        return tuple(self._by_name)

    def __getitem__(self, name: str) -> LayerPlan:
        """The decision for the layer called `name`."""
        try:
            return self._by_name[name]
        except KeyError:
            raise PlanError(
                f"The plan has no layer {name!r}.", f"Its layers are: {', '.join(self.layers)}."
            ) from None

    def trainable(self, name: str) -> BoolTensor:
        """(N,) True where the output channel of layer `name` is trainable."""
        return torch.tensor(self[name].mask, dtype=torch.bool)  # type: ignore[return-value]

    @cached_property
    def batch_norms(self) -> tuple[Layer, ...]:
        """The batch norm modules with frozen channels."""
        partly = (entry.layer for entry in self.entries if not all(entry.mask))
        return tuple(one for one in partly if one.type.startswith("BatchNorm") and one.name in one.modules)

    def parameter_masks(self) -> dict[str, BoolTensor]:
        """For every parameter, True at the entries that may move; shapes as in the model, expanded where possible.

        A parameter of two layers (tied weights) moves only where both agree; one of no layer never moves.
        """
        masks: dict[str, Tensor] = {}
        for entry in self.entries:
            mask = torch.tensor(entry.mask, dtype=torch.bool)
            for rows in entry.layer.parameters:
                own = mask[_collapsed(rows.owner())].expand(rows.shape)
                masks[rows.name] = masks[rows.name] & own if rows.name in masks else own
        return masks  # type: ignore[return-value]

    @property
    def share(self) -> float:
        """Share of the network's parameter entries that are trainable, in [0, 1]."""
        total = sum(entry.entries() for entry in self.entries) + sum(self.unmapped.values())
        return sum(entry.trainable_entries() for entry in self.entries) / max(total, 1)

    def to_json(self) -> str:
        """The plan as JSON text; `TGDPlan.from_json` reads it back to an equal plan."""
        return json.dumps({"format": PLAN_FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> TGDPlan:
        """A plan from the text of `to_json`.

        Raises:
            PlanError: the text is not JSON, or not a plan of this format.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("format") != PLAN_FORMAT:
                raise ValueError("unknown format")
            data["entries"] = tuple(_entry(raw) for raw in data["entries"])
            data["mixed"] = tuple(data["mixed"])
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PlanError(
                f"This is not a TGD plan of format {PLAN_FORMAT} ({error}).",
                "Write one with `tgd plan ... -o plan.json`.",
            ) from error

    @cached_property
    def _by_name(self) -> dict[str, LayerPlan]:
        return {entry.layer.name: entry for entry in self.entries}

    def __str__(self) -> str:
        rows = []
        for entry in self.entries:
            share = entry.trainable_entries() / max(entry.entries(), 1)
            rows.append(
                (
                    entry.layer.name,
                    entry.layer.type,
                    entry.layer.channels,
                    entry.trainable,
                    f"{entry.entries():,}",
                    f"{share:.1%}",
                )
            )
        chosen = (
            f"phi {self.phi:g}" if self.budget is None else f"phi {self.phi:.4g} for budget {self.budget:g}"
        )
        notes = [
            f"trainable: {self.share:.1%} of all parameters; flow {self.flow}, norm statistics {self.norm_stats}"
        ]
        if self.unmapped:
            notes.append(f"frozen whole, in no layer: {', '.join(self.unmapped)}")
        if self.mixed:
            notes.append(f"ops without a rule, mixed: {', '.join(self.mixed)}")
        columns = ("layer", "type", "channels", "trainable", "parameters", "share")
        return as_text(table(columns, rows, title=f"TGD plan, {chosen}", caption="\n".join(notes)))


def _collapsed(owner: Tensor) -> Tensor:
    """The owner index without its expanded axes, so that a mask made from it stays small."""
    for axis, stride in enumerate(owner.stride()):
        if stride == 0 and owner.shape[axis] > 1:
            owner = owner.narrow(axis, 0, 1)
    return owner


def _entry(raw: dict[str, Any]) -> LayerPlan:
    layer = dict(raw["layer"])
    layer["parameters"] = tuple(
        ParameterRows(**{**rows, "shape": tuple(rows["shape"])}) for rows in layer["parameters"]
    )
    layer["statistics"], layer["modules"] = tuple(layer["statistics"]), tuple(layer["modules"])
    scores = tuple(None if score is None else float(score) for score in raw["scores"])
    return LayerPlan(Layer(**layer), scores, tuple(bool(value) for value in raw["mask"]))
