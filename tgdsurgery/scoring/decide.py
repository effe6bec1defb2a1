"""scores + phi / budget / overrides -> TGDPlan: which channels are retrained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import get_args

import torch
from torch import Tensor

from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.plan import Flow, LayerPlan, NormStats, Override, TGDPlan
from tgdsurgery.core.records import ChannelMap, LayerScores


def make_plan(
    channels: ChannelMap,
    scores: Sequence[LayerScores],
    *,
    phi: float = 0.3,
    budget: float | None = None,
    overrides: Mapping[str, Override] | None = None,
    k: int = 5,
    alpha: float = 1.0,
    flow: Flow = "masked",
    norm_stats: NormStats = "hold",
) -> TGDPlan:
    """Decide for every channel of every layer: trainable if its score is below phi (strictly).

    A channel that reaches no consumer (the network's output) is frozen, unless an override says "train".

    Args:
        channels: the channel map the scores were made with.
        scores: one per layer.
        phi: the threshold, in [0, 1].
        budget: instead of phi, the largest share of filter parameters that may be trainable, in [0, 1].
        overrides: layer name or module prefix -> "train", "freeze" or a phi of its own; the longest name wins.
        k: as the scores were made with; written into the plan.
        alpha: as the scores were made with; written into the plan.
        flow: "masked" or "full".
        norm_stats: "hold" or "batch".

    Raises:
        PlanError: a value out of range, an override that names nothing, or a budget that overrides exceed.
    """
    overrides = dict(overrides or {})
    check_settings(phi=phi, budget=budget, overrides=overrides, flow=flow, norm_stats=norm_stats)
    _check_names(overrides, channels)
    if budget is not None:
        phi = _phi_for(budget, scores, overrides)
    return TGDPlan(
        phi=phi,
        budget=budget,
        k=k,
        alpha=alpha,
        flow=flow,
        norm_stats=norm_stats,
        entries=tuple(_decide(scored, phi, overrides) for scored in scores),
        unmapped=dict(channels.unmapped),
        mixed=channels.mixed,
    )


def check_settings(
    *,
    phi: float,
    budget: float | None,
    overrides: Mapping[str, object],
    flow: str,
    norm_stats: str,
) -> None:
    """Refuse what no plan can be made with, before any work is done.

    Raises:
        PlanError: a value out of range; the message names it.
    """
    shares = {"phi": phi, "budget": 0.0 if budget is None else budget}
    thresholds = {
        f"the override of {name!r}": v for name, v in overrides.items() if v not in ("train", "freeze")
    }
    for name, value in {**shares, **thresholds}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            also = ', "train" or "freeze"' if name in thresholds else ""
            raise PlanError(f"{name} is {value!r}.", f"Give a number from 0 to 1{also}.")
    for name, value, kinds in (
        ("flow", flow, get_args(Flow)),
        ("norm_stats", norm_stats, get_args(NormStats)),
    ):
        if value not in kinds:
            raise PlanError(f"{name} is {value!r}.", f"It can be {' or '.join(map(repr, kinds))}.")


def _check_names(overrides: Mapping[str, Override], channels: ChannelMap) -> None:
    for name in overrides:
        if not any(_covers(name, layer) for layer in channels.layers):
            near = get_close_matches(name, channels.layers, n=3, cutoff=0.3) or list(channels.layers)[:3]
            raise PlanError(
                f"The override {name!r} names no layer and no prefix of one.",
                f"Near names: {', '.join(near)}.",
            )


def _covers(name: str, layer: str) -> bool:
    return layer == name or layer.startswith(f"{name}.")


def _decide(scored: LayerScores, phi: float, overrides: Mapping[str, Override]) -> LayerPlan:
    mask = _mask(scored, phi, overrides)
    return LayerPlan(scored.layer, _optional(scored.scores), tuple(mask.tolist()))


def _mask(scored: LayerScores, phi: float, overrides: Mapping[str, Override]) -> Tensor:
    names = [name for name in overrides if _covers(name, scored.layer.name)]
    rule = overrides[max(names, key=len)] if names else phi
    if isinstance(rule, str):
        return torch.full_like(scored.scores, rule == "train", dtype=torch.bool)
    return scored.scores < rule  # NaN, for a channel that reaches no consumer, is below nothing.


def _optional(scores: Tensor) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(value) else value for value in scores.tolist())


def _phi_for(budget: float, scores: Sequence[LayerScores], overrides: Mapping[str, Override]) -> float:
    """The largest phi in [0, 1] with at most `budget` of the filter parameters trainable."""
    filters = [scored for scored in scores if scored.layer.role == "filter"]
    total = sum(rows.numel for scored in filters for rows in scored.layer.parameters)

    def share(phi: float) -> float:
        trainable = ((scored.layer, int(_mask(scored, phi, overrides).sum())) for scored in filters)
        return sum(layer.entries_of(count) for layer, count in trainable) / max(total, 1)

    if share(0.0) > budget:
        raise PlanError(
            f"The overrides alone make {share(0.0):.1%} of the filter parameters trainable, above the budget "
            f"of {budget:.1%}.",
            "Raise the budget or drop an override.",
        )
    # The share only changes where phi passes a score; it rises with phi.
    known = torch.cat([scored.scores for scored in filters]) if filters else torch.zeros(0)
    candidates = sorted({0.0, 1.0, *known[~known.isnan()].tolist()})
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if share(candidates[middle]) <= budget else (low, middle - 1)
    return float(candidates[low])
