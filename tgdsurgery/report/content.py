"""What a report shows: for each layer its scores, its sizes, who feeds it, and what moved in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.plan import Override, TGDPlan, rule_of
from tgdsurgery.core.records import ChannelMap

Scored = Literal["filters", "inputs"]


@dataclass(frozen=True)
class Feed:
    """Input channels of a layer that are fed alike.

    Args:
        channels: such as "0-63".
        filters: what feeds them, such as "conv1[0-63]"; empty for the network's input.
        channel_layers: norms and the like on the way.
    """

    channels: str
    filters: tuple[str, ...]
    channel_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportLayer:
    """One layer of a report.

    Args:
        name: of the layer.
        type: class name of its module; empty where only a checkpoint is known.
        shape: of its weight.
        role: "filter" or "channel" (a norm, a PReLU).
        scores: KSE of each of its own filters, or of each input channel (`Content.scored`); None where nothing
            reads it.
        entries: number of parameter entries that are retrained with each of these.
        rule: the override that decides over it, if any.
        producers: names of the layers that feed it.
        feeds: the same channel by channel, folded.
        moved: for each filter, the norm of its change over the norm it had; empty without another network.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    role: str
    scores: tuple[float | None, ...]
    entries: float
    rule: Override | None = None
    producers: tuple[str, ...] = ()
    feeds: tuple[Feed, ...] = ()
    moved: tuple[float, ...] = ()


@dataclass(frozen=True)
class Content:
    """All that a report shows.

    Args:
        title: what it is about.
        scored: "filters" where a plan gathered scores onto filters, "inputs" for a checkpoint alone.
        phi: the threshold to begin with.
        layers: in execution order, or in that of the checkpoint.
        total: number of parameter entries of the whole network.
        against: what it is compared with, if anything.
        notes: sentences for the reader.
    """

    title: str
    scored: Scored
    phi: float
    layers: tuple[ReportLayer, ...]
    total: int
    against: str = ""
    notes: tuple[str, ...] = ()


def from_plan(
    title: str,
    plan: TGDPlan,
    wiring: ChannelMap,
    feeds: Mapping[str, Sequence[Feed]],
    moved: Mapping[str, Sequence[float]],
    against: str = "",
) -> Content:
    """The content for a network whose plan and channel map are known.

    Args:
        title: what it is about.
        plan: its plan.
        wiring: its channel map.
        feeds: layer to what feeds its input channels.
        moved: layer to the change of each filter.
        against: what it was compared with.
    """
    layers = []
    for entry in plan.entries:
        layer = entry.layer
        rule = "freeze" if layer.frozen_by_user else rule_of(layer.name, plan.overrides, plan.phi)
        layers.append(
            ReportLayer(
                layer.name,
                layer.type,
                layer.parameters[0].shape if layer.parameters else (),
                layer.role,
                entry.scores,
                layer.entries_of(layer.channels) / max(layer.channels, 1),
                None if rule == plan.phi else rule,
                _producers(wiring, layer.name),
                tuple(feeds.get(layer.name, ())),
                tuple(moved.get(layer.name, ())),
            )
        )
    total = sum(entry.entries() for entry in plan.entries) + sum(plan.unmapped.values())
    notes = [f"Ops without a rule, mixed: {', '.join(plan.mixed)}."] if plan.mixed else []
    if plan.unmapped:
        notes.append(f"Frozen whole, in no layer: {', '.join(plan.unmapped)}.")
    return Content(title, "filters", plan.phi, tuple(layers), total, against, tuple(notes))


def _producers(wiring: ChannelMap, name: str) -> tuple[str, ...]:
    if name not in wiring.inputs:
        return ()
    reached = {producer.layer for writers in wiring.producers(name) for producer in writers}
    return tuple(layer for layer in wiring.layers if layer in reached)


def moved_filters(before: Tensor, after: Tensor, axis: int = 0) -> list[float]:
    """For each filter of a weight, the norm of its change over the norm it had before (1 where it was zero).

    Args:
        before: a weight.
        after: of the same shape.
        axis: that counts the filters.

    Raises:
        CheckpointError: the shapes differ.

    Example:
        >>> moved_filters(torch.ones(2, 1), torch.tensor([[1.0], [1.5]]))
        [0.0, 0.5]
    """
    if before.shape != after.shape:
        sizes = ["x".join(map(str, weight.shape)) for weight in (before, after)]
        raise CheckpointError(
            f"A layer's weight is {sizes[0]} in one network and {sizes[1]} in the other.",
            "Compare two states of one network.",
        )
    old, new = (weight.detach().to(torch.float64).movedim(axis, 0).flatten(1) for weight in (before, after))
    norms, change = old.norm(dim=1), (new - old).norm(dim=1)
    relative = torch.where(norms > 0, change / norms, (change > 0).to(norms))
    return [round(value, 6) for value in relative.tolist()]
