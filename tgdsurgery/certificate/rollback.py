"""Whether a change can be taken back: done, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tgdsurgery.certificate.record import Rollback
from tgdsurgery.certificate.rules import Rule, rule_for, rules_of
from tgdsurgery.core.bits import differs
from tgdsurgery.core.plan import TGDPlan


def rolled_back(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    plan: TGDPlan,
    adapted: Mapping[str, Tensor] | None = None,
) -> Rollback:
    """Put the base's values into the entries of the tuned network that may move, and see whether it is the base.

    Args:
        base: tensors by name before training, on the CPU.
        tuned: the same after.
        plan: what was allowed to move.
        adapted: base and delta together, if there is a delta to check as well.

    Raises:
        PlanError: the plan was made for another network than the base.
    """
    rules = rules_of(plan, base)
    names = list({**base, **tuned})
    unlike = [name for name in names if not _restored(name, rules, base, tuned)]
    other = [] if adapted is None else [name for name in names if _unlike(adapted.get(name), tuned.get(name))]
    return Rollback(
        restores_base=not unlike,
        delta_makes_tuned=None if adapted is None else not other,
        differing=tuple(dict.fromkeys([*unlike, *other])),
    )


def _restored(
    name: str, rules: Mapping[str, Rule], base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]
) -> bool:
    """Whether a tensor of the tuned network with the base's values where it may move is the base's, bit for bit."""
    rule, before, after = rule_for(name, rules, base, tuned), base.get(name), tuned.get(name)
    if rule.kind == "counter":
        return True  # put back whole, or left out where older files have none
    if (
        before is not None
        and after is not None
        and before.shape == after.shape
        and before.dtype == after.dtype
    ):
        after = torch.where(rule.movable, before, after)
    return not _unlike(after, before)


def _unlike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is None or other is None or differs(one, other)
