"""scores + settings -> TGDPlan: which channels are retrained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.plan import LayerPlan, TGDPlan, aligned, check_names, rule_of
from tgdsurgery.core.records import ChannelMap, LayerScores
from tgdsurgery.settings import TGDSettings


def make_plan(channels: ChannelMap, scores: Sequence[LayerScores], settings: TGDSettings) -> TGDPlan:
    """Decide for every channel of every layer: trainable if its score is below phi (strictly).

    A channel that reaches no consumer (the network's output) is frozen, unless an override says "train". A layer
    whose parameters the user froze (`requires_grad=False`) stays frozen. With `align` the number below phi is rounded
    up to a multiple, and the next scores are trainable too; with a budget, which may not be exceeded, it is rounded
    down, and phi is the largest at which what remains fits.

    Args:
        channels: the channel map the scores were made with.
        scores: one per layer, made as the settings say.
        settings: the threshold or the budget, the overrides, and what the plan carries along.

    Raises:
        PlanError: an override that names nothing, or a budget that overrides exceed.
    """
    check_names(settings.overrides, channels.layers)
    phi = settings.phi if settings.budget is None else _phi_for(settings.budget, scores, settings)
    return TGDPlan(
        phi=phi,
        budget=settings.budget,
        k=settings.k,
        alpha=settings.alpha,
        flow=settings.flow,
        norm_stats=settings.norm_stats,
        entries=tuple(_decide(scored, phi, settings) for scored in scores),
        unmapped=dict(channels.unmapped),
        mixed=channels.mixed,
        overrides=dict(settings.overrides),
        score=settings.score_name,
        align=settings.align,
    )


def _decide(scored: LayerScores, phi: float, settings: TGDSettings) -> LayerPlan:
    scores = tuple(None if math.isnan(value) else value for value in scored.scores.tolist())
    undecided = LayerPlan(scored.layer, scores, (False,) * len(scores))
    rule = rule_of(scored.layer.name, settings.overrides, phi)
    return undecided.decided(rule, settings.align, up=settings.budget is None)


def _trainable(scored: LayerScores, phi: float, settings: TGDSettings) -> int:
    """How many channels `_decide` would make trainable; on the tensor, since a budget asks this often."""
    rule = rule_of(scored.layer.name, settings.overrides, phi)
    if isinstance(rule, str):
        return len(scored.scores) if rule == "train" else 0
    below = int((scored.scores < rule).sum())  # NaN, for a channel that reaches no consumer, is below nothing
    most = len(scored.scores) - int(scored.scores.isnan().sum())
    return aligned(below, most, settings.align, up=settings.budget is None)


def _phi_for(budget: float, scores: Sequence[LayerScores], settings: TGDSettings) -> float:
    """The largest phi in [0, 1] with at most `budget` of the filter parameters trainable."""
    filters = [scored for scored in scores if scored.layer.role == "filter"]
    total = sum(rows.numel for scored in filters for rows in scored.layer.parameters)

    def share(phi: float) -> float:
        trainable = ((scored.layer, _trainable(scored, phi, settings)) for scored in filters)
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
