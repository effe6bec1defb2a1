"""The plan: which channels of which layers are retrained. Prints as a table, goes to JSON and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import BoolTensor, Tensor

from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.masking import collapsed
from tgdsurgery.core.reading import read_record
from tgdsurgery.core.records import Layer
from tgdsurgery.core.tables import as_text, nearest, table

Flow = Literal["masked", "full"]
NormStats = Literal["hold", "batch"]
Override = float | Literal["train", "freeze"]
KSE = "KSE"  # the name of the score that is used unless another is given
PLAN_FORMAT = "tgdsurgery-plan-2"


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

    def decided(self, rule: Override, align: int = 1, *, up: bool = True) -> LayerPlan:
        """The same layer under "train", "freeze" or a phi. What the user froze before stays frozen.

        Under a phi the number of trainable channels is rounded to a multiple of `align`, see `aligned`.
        """
        if self.layer.frozen_by_user or rule == "freeze":
            mask = [False] * len(self.scores)
        elif isinstance(rule, str):
            mask = [True] * len(self.scores)
        else:  # a channel that reaches no consumer has no score, and is below nothing
            scored = sorted(
                (score, channel) for channel, score in enumerate(self.scores) if score is not None
            )
            below = sum(score < rule for score, _ in scored)
            lowest = {channel for _, channel in scored[: aligned(below, len(scored), align, up=up)]}
            mask = [channel in lowest for channel in range(len(self.scores))]
        return replace(self, mask=tuple(mask))

    def trainable_entries(self) -> int:
        """Number of parameter entries that training moves."""
        return self.layer.entries_of(self.trainable)

    def entries(self) -> int:
        """Number of parameter entries of the layer."""
        return sum(rows.numel for rows in self.layer.parameters)


@dataclass(frozen=True)
class TGDPlan:
    """Which channels of which layers are retrained: the result of scoring, and all that the rewriting needs.

    Prints as a table and goes to JSON and back. Args are the settings it was made with and:
        entries: one per filter layer and channel layer, in execution order.
        unmapped: parameters that belong to no layer, with their number of entries; frozen.
        mixed: ops without a rule that were let through by `on_unknown="mix"`.
        overrides: layer name or module prefix -> "train", "freeze" or a phi of its own.
        score: the name of what scored the channels; for another than KSE, `k` and `alpha` mean nothing.
        align: what the numbers of trainable channels were rounded to multiples of.
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
    overrides: Mapping[str, Override] = field(default_factory=dict)
    score: str = KSE  # also of a plan file that does not name it
    align: int = 1

    def __deepcopy__(self, memo: dict[int, Any]) -> TGDPlan:
        """Itself: nothing in it changes, and networks are copied with their plan."""
        return self

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of every filter layer and channel layer, in execution order."""
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
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors that it knows: parameters, statistics, and what belongs to no layer."""
        layers = [entry.layer for entry in self.entries]
        parameters = (rows.name for layer in layers for rows in layer.parameters)
        statistics = (name for layer in layers for name in layer.statistics)
        return tuple(dict.fromkeys([*parameters, *statistics, *self.unmapped]))

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
                own = mask[collapsed(rows.owner())].expand(rows.shape)
                own = own if rows.requires_grad else torch.zeros((), dtype=torch.bool).expand(rows.shape)
                masks[rows.name] = masks[rows.name] & own if rows.name in masks else own
        return masks  # type: ignore[return-value]

    @property
    def share(self) -> float:
        """Share of the network's parameter entries that are trainable, in [0, 1]."""
        total = sum(entry.entries() for entry in self.entries) + sum(self.unmapped.values())
        return sum(entry.trainable_entries() for entry in self.entries) / max(total, 1)

    @property
    def filter_share(self) -> float:
        """Share of the parameter entries of filter layers that are trainable, in [0, 1]: what `budget` bounds."""
        filters = [entry for entry in self.entries if entry.layer.role == "filter"]
        return sum(e.trainable_entries() for e in filters) / max(sum(e.entries() for e in filters), 1)

    @cached_property
    def rounding(self) -> int:
        """Number of filters that `align` added to those below phi; below 0, that it left out."""
        filters = [entry for entry in self.entries if entry.layer.role == "filter"]
        below = [entry.decided(rule_of(entry.layer.name, self.overrides, self.phi)) for entry in filters]
        return sum(entry.trainable for entry in filters) - sum(entry.trainable for entry in below)

    @property
    def criterion(self) -> str:
        """What decided, in words: phi, the budget that picked it, and the score if it is not KSE."""
        phi = f"phi {self.phi:g}" if self.budget is None else f"phi {self.phi:.4g} for budget {self.budget:g}"
        return phi if self.score == KSE else f"{phi}, scored by {self.score}"

    def override(self, overrides: Mapping[str, Override]) -> TGDPlan:
        """A new plan in which some layers are decided anew, from the same scores.

        phi stays what it is, also where a budget picked it: the new plan has no budget. Layers that the overrides
        do not name stay as they are.

        Args:
            overrides: layer name or module prefix -> "train", "freeze" or a phi of its own. They are added to
                the plan's earlier overrides; the longest name wins.

        Raises:
            PlanError: a name that is neither a layer nor a prefix of one, or a value out of range.

        Example:
            >>> from tgdsurgery.core.records import ParameterRows
            >>> layer = Layer("fc", "filter", "Linear", 2, (ParameterRows("fc.weight", (2, 1)),))
            >>> plan = TGDPlan(0.3, None, 5, 1.0, "masked", "hold", (LayerPlan(layer, (0.1, 0.9), (True, False)),))
            >>> plan.override({"fc": "train"}).trainable("fc").tolist()
            [True, True]
        """
        check_overrides(overrides)
        check_names(overrides, self.layers)
        rules = {**self.overrides, **overrides}
        entries = tuple(
            entry.decided(rule_of(entry.layer.name, rules, self.phi), self.align)
            if any(_covers(name, entry.layer.name) for name in overrides)
            else entry
            for entry in self.entries
        )
        return replace(self, entries=entries, overrides=rules, budget=None)

    @cached_property
    def digest(self) -> str:
        """Equal for plans that make the same network of a model: to compare plans on several machines.

        Scores, and how the plan came to its decisions, do not count: scores can differ in their last bit.
        """
        decided = [(dataclasses.asdict(entry.layer), entry.mask) for entry in self.entries]
        text = json.dumps([decided, self.flow, self.norm_stats, dict(self.unmapped)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """The plan as JSON text; `TGDPlan.from_json` reads it back to an equal plan."""
        return json.dumps({"format": PLAN_FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> TGDPlan:
        """A plan from the text of `to_json`.

        Raises:
            PlanError: the text is not JSON, or not a plan of this format.
        """
        plan = read_record(
            cls, text, PLAN_FORMAT, "a TGD plan", "Write one with `tgd plan ... -o plan.json`."
        )
        check_share("phi", plan.phi)
        check_overrides(plan.overrides)
        check_kse(plan.k, plan.alpha)
        check_align(plan.align)
        if plan.budget is not None:
            check_share("budget", plan.budget)
        for entry in plan.entries:
            _check_sizes(entry)
        if len(plan.layers) != len(plan.entries):
            raise PlanError(
                "The plan has two layers of one name.", "Write it again with `tgd plan ... -o plan.json`."
            )
        return plan

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
        notes = [
            f"trainable: {self.share:.1%} of all parameters; flow {self.flow}, norm statistics {self.norm_stats}"
        ]
        if self.align > 1:
            change = (
                f"{abs(self.rounding)} filters {'more' if self.rounding >= 0 else 'fewer'} than below phi"
            )
            notes.append(f"in multiples of {self.align}: {change}")
        if self.unmapped:
            notes.append(f"frozen whole, in no layer: {', '.join(self.unmapped)}")
        if self.mixed:
            notes.append(f"ops without a rule, mixed: {', '.join(self.mixed)}")
        columns = ("layer", "type", "channels", "trainable", "parameters", "share")
        return as_text(table(columns, rows, title=f"TGD plan, {self.criterion}", caption="\n".join(notes)))


def _check_sizes(entry: LayerPlan) -> None:
    """Raise unless scores, mask and parameters have as many channels as the layer says."""
    layer = entry.layer
    fit = all(
        0 <= rows.axis < max(len(rows.shape), 1)
        and rows.groups > 0
        and (rows.groups == 1 or (rows.shape and rows.shape[0] >= rows.groups))
        for rows in layer.parameters
    )
    counts = {len(entry.scores), len(entry.mask), *(rows.channels for rows in layer.parameters if fit)}
    if not fit or counts != {layer.channels}:
        raise PlanError(
            f"The plan's layer {layer.name!r} has {layer.channels} channels, but its parts have other numbers of them.",
            "Write the plan again with `tgd plan ... -o plan.json`.",
        )


def aligned(count: int, most: int, align: int, *, up: bool) -> int:
    """A number of channels rounded to a multiple of `align`, but never above `most`; `most` itself stays.

    >>> [aligned(count, 20, 8, up=True) for count in (0, 3, 8, 17, 20)]
    [0, 8, 8, 20, 20]
    >>> [aligned(count, 20, 8, up=False) for count in (0, 3, 8, 17, 20)]
    [0, 0, 8, 16, 20]
    """
    if count == most:
        return count
    return min(-(-count // align) * align, most) if up else count // align * align


def rule_of(layer: str, overrides: Mapping[str, Override], phi: float) -> Override:
    """What decides over a layer: the override with the longest name that covers it, or else phi."""
    names = [name for name in overrides if _covers(name, layer)]
    return overrides[max(names, key=len)] if names else phi


def check_share(name: str, value: object, also: str = "") -> None:
    """Raise a PlanError unless the value is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise PlanError(f"{name} is {value!r}.", f"Give a number from 0 to 1{also}.")


def check_kse(k: object, alpha: object) -> None:
    """Raise a PlanError unless KSE can be computed with these."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise PlanError(f"KSE needs at least one nearest neighbour, not k={k!r}.", "The usual value is k=5.")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha < math.inf:
        raise PlanError(
            f"KSE needs a finite alpha of at least 0, not {alpha!r}.", "The usual value is alpha=1."
        )


def check_align(align: object) -> None:
    """Raise a PlanError unless it is a whole number from 1."""
    if isinstance(align, bool) or not isinstance(align, int) or align < 1:
        raise PlanError(f"align is {align!r}.", "Give a whole number from 1, such as 8.")


def check_overrides(overrides: Mapping[str, object]) -> None:
    """Raise a PlanError at a value that is neither a word nor a phi."""
    for name, value in overrides.items():
        if value not in ("train", "freeze"):
            check_share(f"the override of {name!r}", value, also=', "train" or "freeze"')


def check_names(overrides: Mapping[str, object], layers: Collection[str]) -> None:
    """Raise a PlanError at an override that names no layer and no prefix of one."""
    for name in overrides:
        if not any(_covers(name, layer) for layer in layers):
            raise PlanError(
                f"The override {name!r} names no layer and no prefix of one.", nearest(name, layers)
            )


def _covers(name: str, layer: str) -> bool:
    return layer == name or layer.startswith(f"{name}.")
