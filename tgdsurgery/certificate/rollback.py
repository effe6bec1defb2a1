"""Whether a change can be taken back: done, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tgdsurgery.certificate.record import Rollback
from tgdsurgery.certificate.rules import rule_for, rules_of
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
    restored: dict[str, Tensor] = {}
    for name in {**base, **tuned}:
        rule, before, after = rule_for(name, rules, base, tuned), base.get(name), tuned.get(name)
        if rule.kind == "counter":
            after = before  # older files have none
        elif before is not None and after is not None and _alike(before, after):
            after = torch.where(rule.movable, before, after)
        if after is not None:
            restored[name] = after
    unlike = _unlike(restored, base)
    other = _unlike(adapted, tuned) if adapted is not None else []
    return Rollback(
        restores_base=not unlike,
        delta_makes_tuned=None if adapted is None else not other,
        differing=tuple(dict.fromkeys([*unlike, *other])),
    )


def _unlike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not the same in both, bit for bit."""
    return [
        name
        for name in {**other, **one}
        if name not in one or name not in other or differs(one[name], other[name])
    ]


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype
